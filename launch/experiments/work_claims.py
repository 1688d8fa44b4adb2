"""Claims of (config, seed) pairs by processes on one or more machines: one file a claim.

A claim is a file that only one process can create; its holder touches it while it works. A claim
that was not touched for ten minutes belongs to a dead process and may be taken over; one of a
process of this machine that is no more, or of an earlier start of this job of SLURM, at once. If
two processes take it over at the same instant, the pair is run twice, with equal results.
"""

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 600.0
TOUCH_SECONDS = 60.0
STARTED = time.time()  # this process, about


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yields whether this process has the claim; releases it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _create(path):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < STALE_SECONDS and not _is_orphan(path):
                yield False
                return
            path.unlink()
        if not _create(path):
            yield False
            return
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(path, done), daemon=True)
    keeper.start()
    try:
        yield True
    finally:
        done.set()
        keeper.join()
        path.unlink(missing_ok=True)


def _create(path: Path) -> bool:
    try:
        with path.open("x") as file:
            file.write(_owner())
    except FileExistsError:
        return False
    return True


def _owner() -> str:
    job = os.environ.get("SLURM_JOB_ID")
    return f"slurm {job}" if job else f"{platform.node()} {os.getpid()}"


def _is_orphan(path: Path) -> bool:
    """Whether the holder of a claim is known to be gone."""
    owner, mine = path.read_text(), _owner()
    if owner.startswith("slurm ") and owner == mine:
        return path.stat().st_mtime < STARTED
    place, _, number = owner.rpartition(" ")
    if place != platform.node() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _keep(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
