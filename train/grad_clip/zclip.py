"""ZClip: the limit follows from how far a norm lies from the running mean of the norms."""

from typing import Literal

import torch
from torch import Tensor

from .base import EPS, Threshold, finite_or, remember


class ZClip(Threshold):
    """Clips norms more than `z` standard deviations above their running mean (Kumar et al. 2025).

    Mean m and variance v come from the first `warmup` norms, then follow
    m <- a m + (1 - a) x, v <- a v + (1 - a) (x - m)^2, where x is the norm, or the limit if it was
    clipped. Because clipped norms enter as their limit, the published method never recovers from a
    lasting rise (x3 and more): after `patience` clipped steps in a row the statistics are taken
    anew from the last `warmup` norms as they were.

    Args:
        mode: the limit of a norm that lies s = (norm - m) / std > z above the mean.
            `adaptive`: scale * (m + z^2 std / s); `mean`: m; `percentile`: m + z std.
        z: from where on a norm is clipped.
        alpha: a above.
        warmup: norms before the first clipping by statistics.
        max_norm: a fixed limit besides, from the first step on; None: none.
        scale: of the adaptive limit.
        patience: None: twice the warm-up.
    """

    def __init__(
        self,
        mode: Literal["adaptive", "mean", "percentile"] = "adaptive",
        z: float = 2.5,
        alpha: float = 0.97,
        warmup: int = 25,
        max_norm: float | None = None,
        scale: float = 1.0,
        patience: int | None = None,
    ):
        if not 0 <= alpha < 1:
            raise ValueError(f"grad_clip.alpha is {alpha}: it must lie in [0, 1)")
        if z <= 0 or scale <= 0:
            raise ValueError(f"grad_clip.z is {z} and grad_clip.scale {scale}: both must be > 0")
        if warmup < 2:
            raise ValueError(f"grad_clip.warmup is {warmup}: a spread needs at least 2 norms")
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"grad_clip.max_norm is {max_norm}: it must be > 0, or null for none")
        super().__init__(
            history=torch.zeros(warmup),
            count=torch.zeros((), dtype=torch.int64),
            streak=torch.zeros((), dtype=torch.int64),
            mean=torch.zeros(()),
            var=torch.zeros(()),
        )
        self.mode, self.z, self.alpha, self.scale = mode, z, alpha, scale
        self.warmup, self.max_norm = warmup, torch.inf if max_norm is None else max_norm
        self.patience = 2 * warmup if patience is None else patience

    def threshold(self, norm: Tensor) -> Tensor:
        """Returns the limit by statistics where the norm is a spike, else `max_norm`."""
        state = self.state
        mean, std = state["mean"], state["var"].sqrt()
        distance = (norm - mean) / (std + EPS)
        warm = state["count"] >= self.warmup
        spike = warm & norm.isfinite() & (distance > self.z)
        limit = torch.where(spike, self._limit(mean, std, distance), torch.inf)
        self._learn(norm, torch.minimum(norm, limit), spike, warm)
        return limit.clamp(max=self.max_norm)

    def _limit(self, mean: Tensor, std: Tensor, distance: Tensor) -> Tensor:
        if self.mode == "adaptive":
            return self.scale * (mean + self.z**2 * std / distance)
        return mean if self.mode == "mean" else mean + self.z * std

    def _learn(self, norm: Tensor, value: Tensor, spike: Tensor, warm: Tensor) -> None:
        state = self.state
        remember(state["history"], state["count"], norm)
        streak = torch.where(spike, state["streak"] + 1, 0)
        stuck = streak >= self.patience
        anew = stuck | (~warm & (state["count"] >= self.warmup))
        mean = self.alpha * state["mean"] + (1 - self.alpha) * value
        var = self.alpha * state["var"] + (1 - self.alpha) * (value - mean).square()
        mean = torch.where(anew, state["history"].mean(), torch.where(warm, mean, state["mean"]))
        var = torch.where(
            anew, state["history"].var(correction=0), torch.where(warm, var, state["var"])
        )
        state["mean"].copy_(finite_or(norm, state["mean"], mean))
        state["var"].copy_(finite_or(norm, state["var"], var))
        state["streak"].copy_(finite_or(norm, state["streak"], torch.where(stuck, 0, streak)))
