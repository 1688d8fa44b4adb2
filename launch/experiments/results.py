"""One finished (config, seed) pair in, one JSON file out; and all of them back.

A result says what was run (config with its identity, overrides, seed), by which code (commit), on
what kind of machine and when, and what came out. It never says whose: results are published.
"""

import datetime
import json
import math
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from ..config.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
# The sweep itself changes these, so they do not make the code that is measured a different one.
OWN_OUTPUT = (":(exclude)docs/results", ":(exclude)docs/methods.md")


def find_yaml(name: str, folder: str) -> Path:
    """Returns the YAML file meant by `name`: a path, or a packaged file of `configs/<folder>`.

    Raises:
        ValueError: there is neither.
    """
    packaged = ROOT / "configs" / folder
    for path in (Path(name), packaged / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in packaged.glob("*.yaml"))) or "none"
    raise ValueError(f"there is no file {name}, and of packaged ones only: {known}")


def identity(config: str, overrides: dict[str, Any]) -> Identity:
    """Returns what a run trains and on what, without the seed.

    Raises:
        ValueError: the run file or an override cannot be used; said before hours are spent.
    """
    # Everything that can be configured is imported here, which takes seconds.
    from ..config import parser as run_config

    parser = _parser()
    argv = ["--config", config, *settings(overrides)]
    return run_config.identity(parser, run_config.parse(parser, argv))


@cache
def _parser() -> Any:
    from ..config import parser as run_config

    return run_config.make_parser()


def settings(overrides: dict[str, Any]) -> list[str]:
    """Returns overrides of leaves as arguments of `fit`."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in overrides.items()
    ]


def commit() -> dict[str, Any]:
    """Returns {"revision", "dirty"} of the code; revision None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return {"revision": None, "dirty": False}
    revision = _git("rev-parse", "HEAD")
    return {
        "revision": revision,
        "dirty": bool(_git("status", "--porcelain", "--", ".", *OWN_OUTPUT)),
    }


def machine() -> dict[str, Any]:
    """Returns the kind of machine: processor, cores, accelerators, versions; no names of hosts."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _processor(),
        "cores": cores,
        "accelerators": accelerators,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


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
    """Returns the record of one finished pair, from what `fit` left in `summary.json`."""
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


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Writes `record` so that a reader sees the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_results(folder: Path) -> list[dict[str, Any]]:
    """Reads every result below `folder`, ordered by sweep, run and seed.

    Raises:
        ValueError: a file is not a result.
    """
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


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
