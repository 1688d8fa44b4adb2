"""A disk so slow that a checkpoint takes some training steps."""

import threading
from typing import Any

import lightning.pytorch as pl

from counterpoint.train.checkpointing import distributed


class SlowParts(pl.Callback):
    """Lets a rank write its part of a checkpoint only once training has gone on.

    Args:
        steps: how many it must have gone on.
    """

    def __init__(self, steps: int = 2):
        self.steps = steps
        self._now, self._moved = 0, threading.Condition()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The process ends with the run."""
        write = distributed._write_part

        def slow(*args: Any) -> Any:
            end = min(self._now + self.steps, trainer.max_steps)
            with self._moved:
                assert self._moved.wait_for(lambda: self._now >= end, 60), "training waits"
            return write(*args)

        distributed._write_part = slow

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Says that a step is done."""
        with self._moved:
            self._now = trainer.global_step
            self._moved.notify_all()
