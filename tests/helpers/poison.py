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


class PoisonedSamples(pl.Callback):
    """Multiplies the gradients of steps that take samples of some positions of the data's order.

    Args:
        first: position.
        end: one past the last.
        factor: of the gradients.
    """

    def __init__(self, first: int, end: int, factor: float = 1e4):
        self.first, self.end, self.factor = first, end, factor

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        """Alike on every rank, since the positions are those of the global batch."""
        positions = trainer.datamodule.steps.positions(trainer.global_step)
        if positions[0] < self.end and positions[-1] >= self.first:
            loss.register_hook(lambda gradient: gradient * self.factor)
