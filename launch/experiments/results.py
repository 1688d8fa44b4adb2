"""Results of finished (config, seed) pairs, one JSON file each.

A result records the run (config with its identity, overrides, seed), the code (commit), the kind of
machine, the date and the final metrics. It never names a person or a host: results are published.
"""

import datetime
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from ..config.identity import Identity
from ..run.provenance import machine


def identity(config: str, overrides: dict[str, Any]) -> Identity:
    """Returns the identity of a run, without the seed.

    Raises:
        ValueError: the run file or an override cannot be used.
    """
    # Imports everything configurable, which takes seconds.
    from ..config import parser as run_config

    parser = _parser()
    argv = ["--config", config, *settings(overrides)]
    return run_config.identity(parser, run_config.parse(parser, argv))


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


def result(
    sweep: str,
    run: str,
    config: str,
    seed: int,
    overrides: dict[str, Any],
    trained: Identity,
    code: dict[str, Any],
    summary: dict[str, Any],
) -> dict[str, Any]:
    """Returns the record of one finished pair, from its `summary.json`."""
    return {
        "sweep": sweep,
        "run": run,
        "config": config,
        "seed": seed,
        "overrides": overrides,
        "identity": trained.trained_in(summary.get("precision")).to_json(),
        "commit": code,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds": round(summary["seconds"], 1),
        "cpu_seconds": summary.get("cpu_seconds_last_process"),
        "samples": summary["samples"],
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
