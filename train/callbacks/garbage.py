"""Python's garbage collector, at the same steps on all ranks.

Left alone, each rank's collector interrupts it at a time of its own, for a second if it looks at
every object that torch and its libraries have made, and all others wait.
"""

import gc

import lightning.pytorch as pl

EVERY = 100  # steps; objects in circles are few, and those made since the start take milliseconds


class CollectGarbage(pl.Callback):
    """Collects every hundred steps, without what was there at the start."""

    def __init__(self):
        self._is_ours = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over from the collector, unless the user has switched it off."""
        if gc.isenabled():
            self._is_ours = True
            gc.collect()
            gc.freeze()
            gc.disable()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        if self._is_ours and trainer.global_step % EVERY == 0:
            gc.collect()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._give_back()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._is_ours:
            self._is_ours = False
            gc.unfreeze()
            gc.enable()
