"""A callback that records a digest of the moving average after each step, and may stop the run."""

import hashlib
from pathlib import Path

import lightning.pytorch as pl


class Averages(pl.Callback):
    """Appends `step digest` to PATH.RANK; stops all ranks after step `stop_at`."""

    def __init__(self, path: str, stop_at: int | None = None):
        self.path = path
        self.stop_at = stop_at

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        digest = hashlib.sha256()
        for value in pl_module.ema.state_dict().values():
            digest.update(value.numpy().tobytes())
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {digest.hexdigest()}\n")
        if trainer.global_step == self.stop_at:
            trainer.should_stop = True
