"""A callback that spoils gradients."""

import lightning.pytorch as pl
import torch


class Poison(pl.Callback):
    """Makes the gradient of the text projection NaN at some steps (counted from 1)."""

    def __init__(self, steps: list[int]):
        self.steps = steps

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before clipping."""
        if trainer.global_step + 1 in self.steps:
            pl_module.model.text_projection.weight.grad.fill_(torch.nan)
