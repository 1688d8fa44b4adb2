"""One process at a time trains in a run folder.

In: the folder. Out: a lock that ends with this process, however it ends, or a sentence that says
who has it.
"""

import datetime
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from ..env import log

NAME = ".lock"
# A file server notices a machine that was lost after about ninety seconds.
PATIENCE = 180.0
INTERVAL = 2.0
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class RunLock:
    """The lock of a run folder, for the first process of a run.

    It is one of `fcntl`, which forked loader workers do not share: a run can be continued as soon
    as its first process has ended. It reaches other machines where the file system's locks do.

    Args:
        run_dir: the folder, which exists.
        patience: seconds to wait for another process, which may be known dead only later.

    Raises:
        ValueError: another process trains there.
    """

    def __init__(self, run_dir: Path, patience: float = 0.0):
        self._file = -1
        path, end = run_dir / NAME, time.monotonic() + patience
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        waits = False
        while not self._try():
            if time.monotonic() >= end:
                raise ValueError(
                    f"{run_dir} is being trained by {_holder(path)}; wait until it has ended, stop "
                    "it, or choose another --run_dir"
                )
            if not waits:
                log(f"{run_dir} is being trained by {_holder(path)}; waiting for its end")
                waits = True
            time.sleep(INTERVAL)
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(_facts()).encode(), 0)

    def release(self) -> None:
        """Lets another process train there."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def __del__(self):
        self.release()

    def _try(self) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                log("the file system of the run folder has no locks: see that no other fit uses it")
                return True
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            return False
        return True


def _facts() -> dict[str, str | int]:
    since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    host, command = platform.node(), shlex.join(sys.argv)
    return {"host": host, "process": os.getpid(), "since": since, "command": command}


def _holder(path: Path) -> str:
    """Who has the lock, as far as the file says."""
    try:
        facts = json.loads(path.read_text())
        return f"process {facts['process']} on {facts['host']} since {facts['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
