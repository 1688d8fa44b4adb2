"""Gradients and parameters under DeepSpeed's ZeRO 1, 2 and 3.

Gradients are pieces of flat partitions, `parameter.grad` is empty, and what is stepped is an fp32
copy of the parameters.

In: DeepSpeed's optimizer, after the backward pass and before its step. ZeRO's own clipping must be
off (gradient_clipping 0): what is scaled here is what it steps with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .deepspeed_ema import ZeroAverage
from .deepspeed_internals import (
    all_reduce,
    find_fragments,
    find_gradients,
    gather_working_copy,
    working_slice,
)
from .sharded_tensors import Parameters, Tensors, norm_of


class ZeroTensors(Tensors):
    """With or without offload of the optimizer; `zero` is DeepSpeed's `engine.optimizer`."""

    def __init__(self, zero: Any, average: ZeroAverage | None = None):
        self.zero, self.average = zero, average
        self.owned: dict[int, list[Tensor]] = {}
        self.finite: Tensor | None = None
        self.skipping = False
        self._kept: list[tuple[Tensor, Tensor]] = []
        zero.optimizer.register_step_pre_hook(self._before_step)
        zero.optimizer.register_step_post_hook(self._after_step)

    def begin(self) -> None:
        """Finds this step's pieces: DeepSpeed makes new ones every time."""
        self.owned, self.finite, self.skipping = {}, None, False
        for parameter, piece in find_gradients(self.zero):
            self.owned.setdefault(id(parameter), []).append(piece)

    def fill(self, parameters: Parameters) -> None:
        """Nothing is missing: the partitions hold zeros."""

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """Returns this rank's pieces, still multiplied by the loss scale."""
        return [piece for p in parameters for piece in self.owned.get(id(p), [])]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Adds up squares over the ranks; one all-reduce of a vector."""
        total = torch.stack(
            [norm_of(self.pieces(group), groups[0][0]).square() for group in groups]
        )
        all_reduce(self.zero, total)
        self.finite = total.isfinite().all()
        return total.sqrt() / float(self.zero.loss_scale)

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Unsupported: ZeRO cuts inside rows."""
        raise ValueError(
            "grad_clip: AGC needs whole rows, and ZeRO cuts inside them; use DDP, FSDP2 or "
            "another clipper"
        )

    def clamp(self, parameters: Parameters, limit: float) -> None:
        """Clamps in units of the unscaled gradient."""
        super().clamp(parameters, limit * float(self.zero.loss_scale))

    def drop(self, optimizer: torch.optim.Optimizer, parameters: Parameters, skip: Tensor) -> None:
        """Lets ZeRO take its step with an optimizer that passes over everything.

        Not by NaN: ZeRO looks for it before offloaded gradients are scaled, and stage 3 keeps it
        for the next step. In fp16 an overflow is left to ZeRO, whose loss scale must see it.
        """
        if not bool(skip) or (self.zero.dtype == torch.float16 and not self.finite):
            return
        self.skipping = True
        for piece in self.pieces(parameters):
            piece.zero_()

    @torch.no_grad()
    def bound(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Clamps the parameter (in stage 3 its slice, and all of it if it is at hand) and its copy.

        Setting the whole value, as DeepSpeed offers it, fails in stage 3 for one element.
        """
        super().bound(parameter, low, high)
        for fragment in find_fragments(self.zero, parameter):
            fragment.of_partition(fragment.flat).clamp_(low, high)
        if (cut := working_slice(parameter)) is not None:
            cut.clamp_(low, high)

    def value(self, tensor: Tensor) -> Tensor:
        return gather_working_copy(tensor)

    def follow(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], weight: Tensor) -> None:
        """Moves fragments in fp32, each rank its own; then all of them go where they are read."""
        assert self.average is not None
        self.average.follow(weight)

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if self.skipping:
            owners = [p for group in optimizer.param_groups for p in group["params"]]
            self._kept = [(p, p.grad) for p in owners if p.grad is not None]
            for parameter, _grad in self._kept:
                parameter.grad = None

    def _after_step(self, *_: Any) -> None:
        for parameter, gradient in self._kept:
            parameter.grad = gradient
        self._kept = []
