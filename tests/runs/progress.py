"""A callback that says how far each rank is, and may stand still."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl


class Progress(pl.Callback):
    """Writes `pid step` to PATH.RANK before each step.

    Args:
        path: where, without the rank.
        hang: (rank, step) at which to stand still, once.
        stopped: stand still as a process that is stopped, not as one that sleeps.
    """

    def __init__(self, path: str, hang: tuple[int, int] | None = None, stopped: bool = False):
        self.path = path
        self.hang = hang
        self.stopped = stopped

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        file = Path(f"{self.path}.{trainer.global_rank}")
        part = file.with_suffix(file.suffix + ".part")
        part.write_text(f"{os.getpid()} {trainer.global_step}")
        part.replace(file)
        done = Path(f"{self.path}.hung")
        if (trainer.global_rank, trainer.global_step) == self.hang and not done.exists():
            done.touch()
            os.kill(os.getpid(), signal.SIGSTOP) if self.stopped else time.sleep(1e6)


def where(path: str | Path, rank: int) -> tuple[int, int] | None:
    """(pid, step) of a rank, if it has begun."""
    file = Path(f"{path}.{rank}")
    if not file.exists():
        return None
    pid, step = file.read_text().split()
    return int(pid), int(step)
