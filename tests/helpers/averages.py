"""A callback that records a digest of the moving average after each step."""

import hashlib
from pathlib import Path

import lightning.pytorch as pl


class Averages(pl.Callback):
    """Appends `step digest` to PATH.RANK."""

    def __init__(self, path: str):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        digest = hashlib.sha256()
        for value in pl_module.ema.state_dict().values():
            digest.update(value.numpy().tobytes())
        with Path(f"{self.path}.{trainer.global_rank}").open("a") as file:
            file.write(f"{trainer.global_step} {digest.hexdigest()}\n")
