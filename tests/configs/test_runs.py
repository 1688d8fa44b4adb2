"""Every shipped run parses, builds, and survives being written out and read again."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import NllbTokenizer

from counterpoint.data.order.steps import Steps
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.config.run_files import read
from counterpoint.launch.config.staged import parse_stages
from counterpoint.losses.distillation.cluster_discrimination import ClusterDiscrimination
from counterpoint.train.grad_clip.base import Clipper
from counterpoint.train.optim.freeze import freeze
from counterpoint.train.phases import Phases

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = sorted((CONFIGS / "run").rglob("*.yaml"))
OBJECTIVES = sorted((CONFIGS / "objective").glob("*.yaml"))
EXAMPLES = ("mixture", "remote", "views", "webdataset")
SPARE_OPTIMISERS = ("adafactor", "lamb", "lion", "muon", "sophia_g", "stable_adamw")
OPTIMISERS = (*SPARE_OPTIMISERS, "lit")
# Of each kind of part one: reading a whole configuration again takes seconds.
SAMPLE = ("emoji_clip", "emoji_byol_short", "emoji_flip_short", "emoji_rankclip_short", "lit")
# Of the recipes of distillation, the one with most terms; each takes seconds, too.
DISTILLED = ("distill_all", "distill_from_open_clip", "clip_kd")


def parts_of(path, slot):
    """Files that a run file, or one of its stages, names for a slot."""
    run = yaml.safe_load(path.read_text())
    slots = [tree.get(slot) for tree in (run, *run.get("stages", {}).values())]
    return [part for part in slots if isinstance(part, str)]


DISTILLING = {"clusters", "clusters_sharded"} | {
    objective.split("/")[-1].removesuffix(".yaml")
    for path in RUNS
    if path.stem.startswith("distill_") and path.stem != "distill_none"
    for objective in parts_of(path, "objective")
}
# Of a batch: of so many, each of four versions of a text is somewhere the worst (LEAF).
ROWS = 24
# Several large stages; what they are made of stands in the small run of the same name, too.
LARGE = {"siglip2_b16"}
SLOTS = ("trainer", "data", "model", "objective", "optim")
STAGED = [path for path in RUNS if "stages" in yaml.safe_load(path.read_text())]
CLIPS = sorted((CONFIGS / "grad_clip").glob("*.yaml"))


@pytest.fixture(scope="module")
def parser():
    return run_config.make_parser()


def recipes(paths):
    """Parameters: those of distillation but for a sample belong to the long tests."""
    found = []
    for path in paths:
        is_long = path.stem.startswith("distill_") or path.stem in DISTILLING | LARGE
        marks = [pytest.mark.soak] if is_long and path.stem not in DISTILLED else []
        found.append(pytest.param(path, marks=marks, id=path.stem))
    return found


class AnyTokenizer:
    """Stands for tokenizers that a run reads from a folder, or downloads, at its start."""

    pad_token_id, vocabulary = 0, 256_000

    def __len__(self):
        return self.vocabulary

    def convert_tokens_to_ids(self, tokens):
        return [0 for _ in tokens]


@pytest.fixture(autouse=True)
def any_tokenizer(monkeypatch):
    def found(name, **choices):
        return NllbTokenizer() if "nllb" in name else AnyTokenizer()

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", found)


@pytest.mark.parametrize("path", recipes(RUNS))
def test_run(parser, path):
    for config in parse_stages(parser, read(["--config", str(path)])).values():
        assert config.name == path.stem
        with torch.device("meta"):
            parts = parser.instantiate(config)
        phases = Phases(parts.phases)
        assert Steps(phases.lengths).total_steps == phases.total_steps
        assert (parts.model.logit_bias is None) == (parts.objective.logit_bias_init is None)
        assert parts.model.logit_scale_bounds == parts.objective.logit_scale_bounds
        # Every packaged loss works with weights of samples.
        streams = parts.objective.streams
        parts.objective.check_reads_weight(["", *streams.values()])


COMMENTED = [path for path in RUNS if re.search(r"# .*--(phases|model|data)", path.read_text())]
OVERRIDE = re.compile(r"--((?:phases|model|optim|data)[\w.]*) ('[^']*'|\S+)")


@pytest.mark.parametrize("path", COMMENTED, ids=lambda path: path.stem)
def test_what_a_run_says_about_other_sizes_can_be_typed(parser, path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    comment = " ".join(line[1:] for line in path.read_text().splitlines() if line.startswith("#"))
    typed = {}
    for key, value in OVERRIDE.findall(re.sub(" +", " ", comment)):
        (typed[key],) = shlex.split(value.rstrip(".,;:)"))
    assert typed
    for key in [key for key in typed if key.count(".") == 0]:
        assert (CONFIGS.parent / typed.pop(key)).is_file()
    argv = [word for key, value in typed.items() for word in (f"--{key}", value)]
    config = run_config.parse(parser, ["--config", str(path), *argv])
    chosen = run_config.plain(parser, config)
    with torch.device("meta"):
        assert Phases(parser.instantiate(config).phases).total_steps > 0
    for key, value in typed.items():
        found = chosen
        for part in key.split("."):
            found = found[part]
        assert found == json.loads(value)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=() if path.stem in SAMPLE else pytest.mark.soak, id=path.stem)
        for path in RUNS
        if path not in STAGED
    ],
)
def test_a_run_that_was_written_out_is_the_same(parser, path, tmp_path):
    resolved = run_config.plain(parser, run_config.parse(parser, ["--config", str(path)]))
    run_config.save(resolved, tmp_path / "config.yaml")
    again = run_config.parse(parser, ["--config", str(tmp_path / "config.yaml")])
    assert run_config.plain(parser, again) == resolved


def test_every_part_is_used_by_a_run():
    used = {
        (run.parent / part).resolve()
        for run in RUNS
        for slot in SLOTS
        for part in parts_of(run, slot)
    }
    parts = {path.resolve() for slot in SLOTS for path in (CONFIGS / slot).glob("*.yaml")}
    unused = {path.relative_to(CONFIGS).as_posix() for path in parts - used}
    # For stores of users' own, the geometries to which EuCLIP was compared, examples, and a larger
    # model.
    spare = {"clusters", "clusters_sharded"}
    spare |= {name for name in spared("objective/euclip_", unused)}
    assert unused == {
        *(f"objective/{name}.yaml" for name in spare),
        *(f"data/{name}.yaml" for name in EXAMPLES),
        *(f"optim/{name}.yaml" for name in SPARE_OPTIMISERS),
        "model/vit_l14.yaml",
    }


def spared(prefix, unused):
    return {name.split("/")[1].removesuffix(".yaml") for name in unused if name.startswith(prefix)}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_of_data(parser, name, tmp_path):
    run = ["--config", str(CONFIGS / "run" / "emoji" / "emoji_clip.yaml")]
    config = run_config.parse(parser, [*run, "--data", str(CONFIGS / "data" / f"{name}.yaml")])
    with torch.device("meta"):
        data = parser.instantiate(config).data
    chosen = yaml.safe_load((CONFIGS / "data" / f"{name}.yaml").read_text())
    resolved = run_config.plain(parser, config)
    assert all(resolved["data"][key] or value is None for key, value in chosen.items())
    assert set(data.views) == set(chosen.get("views", ()))
    run_config.save(resolved, tmp_path / "config.yaml")
    again = run_config.parse(parser, ["--config", str(tmp_path / "config.yaml")])
    assert run_config.plain(parser, again) == resolved


@pytest.mark.parametrize("path", recipes(OBJECTIVES))
def test_objective_gives_a_finite_value_and_gradients(parser, path, tmp_path, monkeypatch):
    argv = [
        "--config",
        str(CONFIGS / "run" / "emoji" / "emoji_clip.yaml"),
        "--objective",
        str(path),
    ]
    objective = parser.instantiate(run_config.parse(parser, argv)).objective
    for term in objective.modules():
        if isinstance(term, ClusterDiscrimination):
            term.steps += 1  # a run that goes on, and has its prototypes in the checkpoint
    # That heads and prefixes are made for: the emoji model's unless the name says another.
    named = re.search(r"_(64|512|768)$", path.stem)
    width = int(named[1]) if named else 1024 if path.stem.startswith("jina_clip_v2") else 128
    monkeypatch.chdir(tmp_path)
    save_file({"classes": torch.randn(9, width)}, "classes.safetensors")
    batch = {
        "key": torch.randint(-(2**63), 2**63 - 1, (ROWS,)),
        "text": torch.randint(1, 99, (ROWS, 8)),
        "text_length": torch.full((ROWS,), 8),
        "clusters.id": torch.arange(ROWS),
        "text.translated.present": torch.ones(ROWS, dtype=torch.bool),
        "clusters.present": torch.ones(ROWS, dtype=torch.bool),
    }
    batch |= {f"{stream}/key": torch.arange(ROWS) for stream in objective.streams.values()}
    scales = {name for name in objective.needs if name.split(".")[-1].startswith("logit_")}
    rows = {
        name
        for name in objective.needs - scales - batch.keys() | {"image", "text"} & objective.needs
    }
    features = {
        name: F.normalize(torch.randn(ROWS, width), dim=-1).requires_grad_() for name in rows
    }
    features |= {name: torch.tensor([5.0], requires_grad=True) for name in scales}
    features["logit_scale"] = torch.tensor([objective.logit_scale_init], requires_grad=True)
    if objective.logit_bias_init is not None:
        features["logit_bias"] = torch.tensor([objective.logit_bias_init], requires_grad=True)
    assert objective.needs <= features.keys() | batch.keys()
    total, report = objective(features, batch)
    total.backward()
    assert total.isfinite() and {name.split("/")[0] for name in report} == set(objective.terms)
    frozen = {name for name in rows if name.startswith(("ema.", "teacher.", "large."))}
    assert all(features[name].grad.abs().sum() > 0 for name in rows - frozen)
    assert all(features[name].grad is None for name in frozen)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_optimiser(parser, name):
    argv = ["--config", str(CONFIGS / "run" / "emoji" / "emoji_clip.yaml")]
    argv += ["--optim", str(CONFIGS / "optim" / f"{name}.yaml")]
    config = run_config.parse(parser, argv)
    parts = parser.instantiate(config)
    named = dict(parts.model.named_parameters())
    freeze(parts.model, parts.optim.groups.frozen)
    trained = parts.optim.build(parts.model, parts.objective).param_groups
    learns = sum(len(group["params"]) for group in trained)
    assert learns == len(named) if name != "lit" else 0 < learns < len(named)


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_clipper(parser, path):
    argv = [
        "--config",
        str(CONFIGS / "run" / "emoji" / "emoji_clip.yaml"),
        "--grad_clip",
        str(path),
    ]
    config = run_config.parse(parser, [*argv, "--guard.spikes.z", "6"])
    with torch.device("meta"):
        parts = parser.instantiate(config)
    assert isinstance(parts.grad_clip, Clipper) and parts.guard.spikes.z == 6
    with pytest.raises(ValueError, match="nonsense"):
        run_config.parse(parser, [*argv, "--grad_clip.init_args.nonsense=1"])
