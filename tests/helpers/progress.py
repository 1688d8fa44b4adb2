"""A callback that writes each rank's step to a file, and waits or hangs where a test wants it."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
from waiting import until

from counterpoint.data.files import write_whole


class Progress(pl.Callback):
    """Writes `pid step` to PATH.RANK before each step, and waits at a fence (see `fence`).

    Args:
        path: where, without the rank.
        hang: (rank, step) at which to hang, once.
        stopped: hang as a process that is stopped, not as one that sleeps.
    """

    def __init__(self, path: str, hang: tuple[int, int] | None = None, stopped: bool = False):
        self.path = path
        self.hang = hang
        self.stopped = stopped

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        file = Path(f"{self.path}.{trainer.global_rank}")
        write_whole(file, f"{os.getpid()} {trainer.global_step}")
        until(lambda: trainer.global_step < fenced(self.path))
        done = Path(f"{self.path}.hung")
        if (trainer.global_rank, trainer.global_step) == self.hang and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGSTOP) if self.stopped else time.sleep(1e6)


def fence(path: str | Path, step: int | None) -> None:
    """Puts a fence before a step: no rank begins it or a later one until the fence is moved.

    A test that does something to a run at a step does it before the fence, however slow the test or
    fast the run. None takes the fence away.
    """
    file = Path(f"{path}.fence")
    if step is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".moved")
    part.write_text(str(step))
    part.replace(file)


def fenced(path: str | Path) -> float:
    """The step before which the fence stands."""
    try:
        return int(Path(f"{path}.fence").read_text())
    except FileNotFoundError:
        return float("inf")


def where(path: str | Path, rank: int) -> tuple[int, int] | None:
    """(pid, step) of a rank, if it has begun."""
    file = Path(f"{path}.{rank}")
    if not file.exists():
        return None
    pid, step = file.read_text().split()
    return int(pid), int(step)
