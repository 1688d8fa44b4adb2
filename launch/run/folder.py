"""The run folder: its creation, and what it keeps about how its numbers came to be.

In: a resolved configuration. Out: `config.yaml`; `starts.jsonl`, one line for each time the run was
started, with the machine, the code (commit, and what was changed since) and the environment
(versions of all packages) under the names of files in `frozen/`; at the end `summary.json`.
"""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...data.files import write_whole
from ...train.callbacks.metrics import read_rows
from ...train.checkpointing import checkpoint as checkpoints
from ...train.phases import Phases
from ...train.screen import log_line
from ..config.identity import Identity
from ..config.parser import save
from ..config.run_files import STAGES
from ..config.stages import FILE
from .collapse import collapse
from .env import is_first_process, under_torchrun
from .means import means
from .provenance import RECORDED, changes, commit, packages, versions

# Facts of the last start that belong to the result.
SUMMARISED = (
    *("host", "machine", "device", "world_size", "precision"),
    *("parameters", "epoch_size", "code"),
)


def run_dir_of(config: Any) -> Path:
    """Returns where the results of a run go."""
    return Path(config.run_dir or f"runs/{config.name}")


def prepare_folder(run_dir: Path) -> None:
    """Makes the run folder; a folder that holds a run is refused."""
    if is_first_process():
        if checkpoints.newest(run_dir):
            raise ValueError(
                f"{run_dir} already holds a run: continue it with --resume {run_dir}, or choose "
                "another --run_dir"
            )
        run_dir.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def folder_errors(run_dir: Path) -> Iterator[None]:
    """Turns an OSError about the run folder into a sentence; others, and a full disk, pass.

    Raises:
        ValueError: the folder is read-only, has been removed, or its disk has failed.
    """
    try:
        yield
    except OSError as error:
        at, folder = Path(str(error.filename)).absolute(), run_dir.absolute()
        is_ours = error.filename is not None and (
            folder in (at, *at.parents) or at in folder.parents
        )
        if not is_ours or error.errno == errno.ENOSPC:
            raise
        raise ValueError(
            f"{error.filename} cannot be written ({error.strerror}): the run folder is read-only, "
            "or has been removed; make it writable and continue with --resume, or choose another "
            "--run_dir"
        ) from error


def freeze(
    run_dir: Path, resolved: Mapping[str, dict[str, Any]], stage: str, step: int, facts: Any
) -> None:
    """Writes the configuration, and appends this start, after `step`: what runs where.

    Args:
        run_dir: the folder.
        resolved: configuration of each stage.
        stage: which begins or goes on.
        step: the last that is done.
        facts: of the start.
    """
    save(resolved[stage], run_dir / "config.yaml")
    if len(resolved) > 1:
        save({STAGES: dict(resolved)}, run_dir / FILE)
    code = commit()
    if code["dirty"] and (text := changes()):
        code["changes"] = keep(run_dir, text, "diff")
    local, nodes = under_torchrun() or (None, 1)
    start = {
        **({"stage": stage} if stage else {}),
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "step": step,
        "command": sys.argv,
        "host": platform.node(),
        "nodes": nodes,
        "processes_per_node": local,
        "code": code,
        **facts,
        "python": platform.python_version(),
        "packages": keep(run_dir, "\n".join(packages()) + "\n", "txt"),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(RECORDED)},
    }
    # Not appended: half a line, of a full disk, would be joined with the next start's.
    starts = run_dir / "starts.jsonl"
    before = starts.read_text() if starts.exists() else ""
    write_whole(starts, before + json.dumps(start) + "\n")


def keep(run_dir: Path, text: str, suffix: str) -> str:
    """Stores a text once, under its hash; returns the file's name below the run folder."""
    name = f"frozen/{hashlib.sha256(text.encode()).hexdigest()[:12]}.{suffix}"
    if not (run_dir / name).exists():
        (run_dir / "frozen").mkdir(exist_ok=True)
        write_whole(run_dir / name, text)
    return name


def is_finished(run_dir: Path, total_steps: int) -> bool:
    """Whether a run of that many steps has come to its end, summary included."""
    path = run_dir / "summary.json"
    return path.exists() and json.loads(path.read_text())["steps"] == total_steps


def write_summary(
    run_dir: Path,
    resolved: dict[str, Any],
    identity: Identity,
    phases: Phases,
    step: int,
    spent: dict[str, float],
    stopped_by: str | None = None,
) -> None:
    """Writes `summary.json`: last values, means over the run, and what produced them.

    Args:
        run_dir: the folder.
        resolved: configuration of the last stage.
        identity: of the run.
        phases: of the last stage.
        step: the last that is done.
        spent: seconds by name.
        stopped_by: the callback that ended the run before its time.
    """
    rows = read_rows(run_dir / "metrics.jsonl")
    start = read_rows(run_dir / "starts.jsonl")[-1]
    samples = phases.samples_before(step)
    final: dict[str, Any] = {}
    for row in rows:
        final |= {k: v for k, v in row.items() if k not in ("step", "wall")}
    sentence = collapse(rows)
    final["collapsed"] = int(bool(sentence))
    if sentence:
        log_line(f"{resolved['name']} {sentence} (docs/howto/troubleshooting.md)", sys.stderr)
    summary = {
        "name": resolved["name"],
        "final": final,
        "mean": means(rows),
        "steps": step,
        **({} if stopped_by is None else {"stopped_by": stopped_by}),
        "samples": samples,
        "epochs": round(samples / start["epoch_size"], 4) if start["epoch_size"] else None,
        "seconds": round(max((row["wall"] for row in rows), default=0.0), 1),
        **{name: round(seconds, 1) for name, seconds in spent.items()},
        "config_hash": identity.digest,
        "seed": resolved["seed"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **{name: start[name] for name in SUMMARISED},
        "versions": {"python": platform.python_version(), **versions()},
    }
    write_whole(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
