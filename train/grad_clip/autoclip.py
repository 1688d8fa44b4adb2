"""AutoClip: the limit is a percentile of the norms seen so far."""

import torch
from torch import Tensor

from ..checks import at_least
from .base import Threshold, remember


class AutoClip(Threshold):
    """Clips to the p-th percentile of past norms, this step's included (Seetharaman et al. 2020).

    With the paper's p = 10 nine steps in ten are clipped: it evens out the steps' lengths, it does
    not wait for spikes.

    Args:
        percentile: between 0 and 100.
        window: how many norms are remembered; the paper remembers all.
    """

    def __init__(self, percentile: float = 10.0, window: int = 10_000):
        if not 0 <= percentile <= 100:
            raise ValueError(f"grad_clip.percentile is {percentile}: it must lie between 0 and 100")
        at_least("grad_clip.window", window, 1)
        super().__init__(history=torch.zeros(window), count=torch.zeros((), dtype=torch.int64))
        self.percentile = percentile

    def threshold(self, norm: Tensor) -> Tensor:
        """Returns the percentile, interpolated linearly; inf before the first finite norm."""
        history, count = self.state["history"], self.state["count"]
        remember(history, count, norm)
        filled = torch.arange(len(history), device=norm.device) < count
        ordered = torch.where(filled, history, torch.inf).sort().values
        position = (count.clamp(1, len(history)) - 1) * (self.percentile / 100)
        low, high = ordered[position.floor().long()], ordered[position.ceil().long()]
        between = low + (high - low) * position.frac()
        return torch.where(count > 0, between, torch.inf)
