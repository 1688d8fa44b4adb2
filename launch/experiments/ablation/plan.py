"""What an ablation compares: the pool, subsets of it, and random subsets of the same sizes.

In: a YAML file.

    name: icons
    config: icons_clip            # a run file, or a packaged run's name
    set: {model.chunks: 4}        # settings of all runs
    pool: {manifest: [icons/train.parquet]}      # the run file's own, where it is left out
    samples: 400000               # that every run sees
    seeds: [0, 1, 2]
    curations:
      clip_score: {keep_list: curated/clip_score/keep.parquet}
      rules: {curation: basic}    # filters over the score table, run by `counterpoint curate`
    table: scores                 # the score table, and stores, of such curations; a curation may
    stores: {clip: stores/clip}   # have its own
    random: true                  # a random subset of the size of each curation, anew for each seed
    evaluate: {in_distribution: indist/top1, shift: shift/top1}
    baseline: {samples: [100000, 200000]}        # evaluations of the pool's runs on their way

Out: a `Plan`: the subsets with what they contain, and the (config, seed) pairs of the runs.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ....data.shards.manifest import Manifest
from ..results import Pair, identity, parsed
from ..yaml_files import check_keys, check_seeds, read_yaml
from .curated import curated
from .subsets import Bits, read_subset, sizes_of_random, whole_pool, write_random

KEYS = frozenset({"name", "config", "set", "pool", "samples", "seeds", "curations", "random"})
KEYS |= {"evaluate", "baseline", "table", "stores"}
CURATION_KEYS = frozenset({"keep_list", "curation", "set", "table", "stores"})
NEEDED = frozenset({"name", "config", "samples", "seeds", "curations"})
POOL = "pool"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# What an ablation sets itself, by the key that says it.
OWNED = {
    "data.manifest": "pool: {manifest: [...]}",
    "data.keep_lists": "keep_list of a curation",
    "seed": "seeds",
    "run_dir": "--out",
}


@dataclass(frozen=True)
class Subset:
    """What the runs of one name train on.

    Attributes:
        name: of the runs.
        kind: pool, curation or random.
        size: number of different samples.
        control: name of the runs that it is compared with; None: it is one itself.
        bits: which samples; None of a random one, which differ between seeds.
    """

    name: str
    kind: str
    size: int
    control: str | None = None
    bits: Bits | None = None


@dataclass(frozen=True)
class Plan:
    """An ablation.

    Attributes:
        name: of the ablation.
        samples: that every run sees.
        seeds: of the runs.
        subsets: the pool first, then curations, then random subsets.
        pairs: of all subsets and seeds, seeds varying slowest.
        pool_size: samples of the pool.
        evaluations: what `in_distribution` and `shift` are called in the file.
        baseline: numbers of samples at which evaluations of the pool's runs are points of the line.
    """

    name: str
    samples: int
    seeds: list[int]
    subsets: list[Subset]
    pairs: list[Pair]
    pool_size: int
    evaluations: dict[str, str] = field(default_factory=dict)
    baseline: list[int] = field(default_factory=list)


def read_plan(file: Path, out: Path) -> Plan:
    """Reads an ablation, and writes its random subsets below `out` if they are not there.

    Raises:
        ValueError: something in it is wrong, or a keep-list does not fit the pool.
    """
    return _Reader(file, out).plan()


def read_name(file: Path) -> str:
    """Reads the name of an ablation alone."""
    content = read_yaml(file)
    check_keys(content, KEYS, NEEDED, str(file))
    return _checked_name(content["name"], f"{file}: name")


def _checked_name(name: Any, what: str) -> str:
    if not NAME.fullmatch(str(name)):
        raise ValueError(
            f"{what} is '{name}'; files are called after it: use letters, digits, _, - and ."
        )
    return str(name)


class _Reader:
    def __init__(self, file: Path, out: Path):
        self.file, self.out = file, out
        content = read_yaml(file)
        check_keys(content, KEYS, NEEDED, str(file))
        self.content = content
        self.name = _checked_name(content["name"], f"{file}: name")
        self.seeds = check_seeds(content["seeds"], str(file))
        curations = content["curations"]
        if not isinstance(curations, dict) or not curations:
            raise ValueError(
                f"{file}: curations is {curations}; write NAME: {{keep_list: FILE}} below it"
            )
        # A name such as 30 is a number in YAML.
        self.curations = {str(name): written for name, written in curations.items()}
        if not isinstance(content.get("random", True), bool):
            raise ValueError(f"{file}: random is {content['random']}; write true or false")

    def plan(self) -> Plan:
        """Reads all of the file."""
        pool = self.content.get("pool") or {}
        check_keys(pool, {"manifest", "keep_list"}, set(), f"{self.file}, pool")
        self.common = self._settings(self.content, str(self.file))
        if "manifest" in pool:
            self.common["data.manifest"] = pool["manifest"]
        if "keep_list" in pool:
            self.common["data.keep_lists"] = _as_list(pool["keep_list"])
        config = parsed(self.content["config"], self.common)
        if not config.data.manifest:
            raise ValueError(
                f"{self.content['config']} reads a stream, which has no subsets; give pool: "
                "{manifest: [...]} of indexed shards (counterpoint data index)"
            )
        self._check_evaluation(config)
        self._set_samples(config)
        self.manifest = Manifest.load(config.data.manifest)
        self.pool = self._subset(config.data.keep_lists)
        if self.content.get("random", True):
            self._check_weights(config.data.keep_lists or [])
        subsets = [Subset(POOL, "pool", self.pool.size, bits=self.pool)]
        pairs = self._pairs(POOL, self.common, {"subset": self.pool.fingerprint})
        chosen = {name: self._curation(name, written) for name, written in self.curations.items()}
        sizes = sizes_of_random([bits.size for bits, _ in chosen.values()], self.pool.size)
        if not self.content.get("random", True):
            sizes = dict.fromkeys(sizes)
        for name, (bits, overrides) in chosen.items():
            size = sizes[bits.size]
            control = POOL if size is None else _random_name(size)
            subsets.append(Subset(name, "curation", bits.size, control, bits))
            pairs += self._pairs(name, overrides, {"subset": bits.fingerprint})
        for size in sorted({size for size in sizes.values() if size is not None}):
            subsets.append(Subset(_random_name(size), "random", size))
            pairs += self._random_pairs(size)
        return Plan(
            self.name,
            self.samples,
            self.seeds,
            subsets,
            sorted(pairs, key=lambda pair: self.seeds.index(pair.seed)),
            self.pool.size,
            self.evaluations,
            self._baseline(),
        )

    def _check_weights(self, lists: Sequence[str]) -> None:
        """Refuses a pool with weights, which its random subsets would not have."""
        for path in lists:
            if "weight" in pq.read_schema(path).names:
                raise ValueError(
                    f"{self.file}, pool: {path} has weights, and random subsets of it would have "
                    "none: drop its column weight, or compare with the pool alone (random: false)"
                )

    def _settings(self, content: Any, where: str) -> dict[str, Any]:
        settings = content.get("set") or {}
        if not isinstance(settings, dict):
            raise ValueError(
                f"{where}: set is {settings}; write keys and values such as {{model.chunks: 4}}"
            )
        for key in settings:
            if key in OWNED:
                raise ValueError(f"{where}: set has {key}; here it is given by `{OWNED[key]}`")
            if re.fullmatch(r"config|data|phases|phases\.[^.]+", str(key)):
                raise ValueError(
                    f"{where}: set has {key}, which would replace what an ablation sets; name each "
                    "setting in full, such as data.num_workers or phases.train.learning_rate"
                )
            if re.fullmatch(r"phases\.[^.]+\.samples", str(key)):
                raise ValueError(
                    f"{where}: set has {key}; all runs see equally many samples: the key `samples`"
                )
        return dict(settings)

    def _set_samples(self, config: Any) -> None:
        samples, phases = self.content["samples"], list(config.phases)
        if not isinstance(samples, dict):
            if len(phases) > 1:
                raise ValueError(
                    f"{self.file}: the run has the phases {', '.join(phases)}; give the samples of "
                    f"each: samples: {{{phases[0]}: {samples}, ...}}"
                )
            samples = {phases[0]: samples}
        check_keys(samples, set(phases), set(phases), f"{self.file}, samples")
        for phase, num in samples.items():
            if type(num) is not int or num < 1:
                raise ValueError(f"{self.file}: samples is {num}; write a number such as 400000")
            self.common[f"phases.{phase}.samples"] = num
        self.samples = sum(samples.values())

    def _check_evaluation(self, config: Any) -> None:
        """Refuses tasks that the suite does not have; measures are known after the first run."""
        from ...config.suites import load_suite

        self.evaluations = self.content.get("evaluate") or {}
        where = f"{self.file}, evaluate"
        check_keys(self.evaluations, {"in_distribution", "shift"}, set(), where)
        if "shift" in self.evaluations and "in_distribution" not in self.evaluations:
            raise ValueError(f"{where}: shift needs in_distribution, which its accuracy is held to")
        if config.evaluation.suite is None:
            raise ValueError(
                f"{self.content['config']} is not evaluated, so there is nothing to compare; name "
                "a suite: set: {evaluation.suite: NAME}"
            )
        suite = load_suite(config.evaluation.suite, config.evaluation.data_root)
        for key, name in self.evaluations.items():
            task, _, measure = str(name).removeprefix(f"{suite.name}/").rpartition("/")
            if not measure or not any(task == t or task.startswith(f"{t}_") for t in suite.tasks):
                raise ValueError(
                    f"{where}: {key} is {name}; write TASK/MEASURE, such as "
                    f"{next(iter(suite.tasks))}/top1; the tasks of {suite.name} are "
                    f"{', '.join(suite.tasks)}"
                )

    def _curation(self, name: Any, written: Any) -> tuple[Bits, dict[str, Any]]:
        where = f"{self.file}, curation {_checked_name(name, f'{self.file}: a curation')}"
        if name == POOL or str(name).startswith("random_"):
            raise ValueError(f"{where}: the names {POOL} and random_... are taken; choose another")
        check_keys(written, CURATION_KEYS, set(), where)
        if ("keep_list" in written) == ("curation" in written):
            raise ValueError(
                f"{where}: it needs keep_list (a Parquet file) or curation (filters), one of them"
            )
        overrides = self.common | self._settings(written, where)
        if "curation" in written:
            lists = [str(self._curated(str(name), written, where))]
        else:
            lists = _as_list(written["keep_list"])
        overrides["data.keep_lists"] = lists
        for path in lists:
            if not Path(path).is_file():
                raise ValueError(
                    f"{where}: there is no keep-list {path} (paths start where the command is run)"
                )
        bits = self._subset(lists)
        if not bits.size:
            raise ValueError(f"{where}: it keeps no sample (all weights are 0); loosen its filters")
        if outside := bits.size - bits.common(self.pool):
            raise ValueError(
                f"{where}: {outside:,} of its {bits.size:,} samples are not in the pool, which its "
                "keep_list restricts; compare subsets of one pool"
            )
        return bits, overrides

    def _curated(self, name: str, written: dict[str, Any], where: str) -> Path:
        """Runs a curation that is given as filters, unless it has been."""
        given = {key: self.content[key] for key in ("table", "stores") if key in self.content}
        given |= written
        stores = given.get("stores") or {}
        if "table" not in given or not isinstance(stores, dict):
            raise ValueError(
                f"{where}: a curation of filters needs the key `table` (the folder that "
                "counterpoint score wrote), and `stores: {NAME: FOLDER}` if its filters read any"
            )
        table, curation = Path(given["table"]), str(given["curation"])
        try:
            return curated(name, curation, table, stores, self.out / "curated")
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def _subset(self, lists: Any) -> Bits:
        if not lists:
            return whole_pool(self.manifest)
        return read_subset(list(lists), self.manifest, self.out / "subsets" / "compiled")

    def _pairs(self, name: str, overrides: dict[str, Any], inputs: dict[str, str]) -> list[Pair]:
        config = self.content["config"]
        trained = identity(config, overrides)
        inputs = {"shards": self.manifest.fingerprint} | inputs
        return [
            Pair(self.name, name, config, seed, trained, overrides, inputs) for seed in self.seeds
        ]

    def _random_pairs(self, size: int) -> list[Pair]:
        pairs, name = [], _random_name(size)
        for seed in self.seeds:
            file = f"{name}-seed{seed}-{self.pool.fingerprint[:8]}.parquet"
            path = self.out / "subsets" / file
            if not path.is_file():
                write_random(path, self.manifest, self.pool, size, seed)
            overrides = self.common | {"data.keep_lists": [str(path)]}
            named = self._pairs(name, overrides, {"subset": path.stem})
            pairs += [pair for pair in named if pair.seed == seed]
        return pairs

    def _baseline(self) -> list[int]:
        baseline = self.content.get("baseline") or {}
        where = f"{self.file}, baseline"
        check_keys(baseline, {"samples"}, set(), where)
        samples = baseline.get("samples", [])
        if not isinstance(samples, list) or not all(type(n) is int and n > 0 for n in samples):
            raise ValueError(f"{where}: samples is {samples}; write a list such as [100000]")
        if baseline and "shift" not in self.evaluations:
            raise ValueError(
                f"{where}: a line needs evaluate: {{in_distribution: ..., shift: ...}}"
            )
        return samples


def _as_list(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _random_name(size: int) -> str:
    return f"random_{size}"
