"""Claims of (config, seed) pairs by processes on one or more machines: one file a claim.

A claim is a file that only one process can create; its holder touches it while it works. A claim
that was not touched for ten minutes belongs to a dead process and may be taken over. If two
processes take it over at the same instant, the pair is run twice, with equal results. (After a
kill -9, deleting the claim saves the ten minutes.)
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

STALE_SECONDS = 600.0
TOUCH_SECONDS = 60.0


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Yields whether this process has the claim; releases it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not _create(path):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime < STALE_SECONDS:
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
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


def _keep(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)
