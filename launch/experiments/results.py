"""Results of finished (config, seed) pairs, one JSON file each.

A result records the run (config with its identity, overrides, seed), the code (commit), the kind of
machine, the date and the final metrics. It never names a person or a host: results are published.
"""

import datetime
import hashlib
import json
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ..config.identity import Identity
from ..run.provenance import machine


@dataclass(frozen=True)
class Pair:
    """One run of one configuration with one seed.

    Attributes:
        sweep: the sweep or ablation that it belongs to.
        run: its name there.
        config: run file, or the name of a packaged one.
        seed: of the run.
        trained: the configuration, without the seed.
        overrides: settings of the run, by dotted name.
        inputs: hashes of files that the configuration only names; a result holds for these.
    """

    sweep: str
    run: str
    config: str
    seed: int
    trained: Identity
    overrides: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What files and messages call it."""
        return f"{self.run}-seed{self.seed}"

    @property
    def digest(self) -> str:
        """Hash of the configuration and of the inputs."""
        if not self.inputs:
            return self.trained.digest
        text = json.dumps([self.trained.digest, self.inputs], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def identity(config: str, overrides: dict[str, Any]) -> Identity:
    """Returns the identity of a run, without the seed.

    Raises:
        ValueError: the run file or an override cannot be used.
    """
    from ..config.run_files import read
    from ..config.staged import identity_of, parse_stages, stages_of

    written = read(["--config", config, *settings(overrides)])
    return identity_of(stages_of(_parser(), parse_stages(_parser(), written)))


def parsed(config: str, overrides: dict[str, Any]) -> Any:
    """Returns a run's configuration, with its overrides."""
    # Imports everything configurable, which takes seconds.
    from ..config import parser as run_config

    return run_config.parse(_parser(), ["--config", config, *settings(overrides)])


@cache
def _parser() -> Any:
    from ..config import parser as run_config

    return run_config.make_parser()


def settings(overrides: dict[str, Any]) -> list[str]:
    """Returns overrides as arguments of `fit`."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in overrides.items()
    ]


def result(pair: Pair, code: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of one finished pair, from its `summary.json`."""
    return {
        "sweep": pair.sweep,
        "run": pair.run,
        "config": pair.config,
        "seed": pair.seed,
        "overrides": pair.overrides,
        **({"inputs": pair.inputs} if pair.inputs else {}),
        "identity": pair.trained.trained_in(summary.get("precision")).to_json(),
        "commit": code,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(summary["seconds"], 1),
        "cpu_seconds": summary.get("cpu_seconds_last_process"),
        "device": summary.get("device"),
        "world_size": summary.get("world_size"),
        "samples": summary["samples"],
        "epochs": summary.get("epochs"),
        "final": {name: _finite(value) for name, value in sorted(summary["final"].items())},
    }


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Reads every result below `folder`, ordered by sweep, run and seed."""
    records = []
    for path in folder.glob("*/*.json"):
        record = read_result(path)
        assert record is not None
        records.append(record)
    return sorted(records, key=lambda r: (r["sweep"], r["run"], r["seed"]))


def read_result(path: Path) -> dict[str, Any] | None:
    """Reads one result; None when there is no such file."""
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        missing = {"sweep", "run", "seed", "identity", "final"} - set(record)
    except (json.JSONDecodeError, TypeError):
        missing = {"JSON"}
    if missing:
        raise ValueError(f"{path} is no result (lacks {', '.join(sorted(missing))}); remove it")
    return record


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
