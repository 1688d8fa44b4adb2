"""A lock between processes of one machine that disappears with its holder.

In: a path. Out: a context that one thread of one process at a time enters.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Waits for the lock; yields the descriptor of its file, which is removed afterwards."""
    with held(path, fcntl.LOCK_EX) as descriptor:
        assert descriptor is not None
        yield descriptor


@contextlib.contextmanager
def tried(path: Path) -> Iterator[int | None]:
    """Yields like `locked`, or None at once if the lock is taken."""
    with held(path, fcntl.LOCK_EX | fcntl.LOCK_NB) as descriptor:
        yield descriptor


@contextlib.contextmanager
def held(path: Path, operation: int) -> Iterator[int | None]:
    """Yields the descriptor of a locked file, or None if `operation` does not wait for it."""
    descriptor = _acquired(path, operation)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            # The file is removed before the lock is released: waiting processes notice.
            path.unlink(missing_ok=True)
            # Closing alone would leave the lock to a process forked meanwhile.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _acquired(path: Path, operation: int) -> int | None:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        # The previous holder may have removed the file: the lock is on another file now.
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            return descriptor
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
