"""Shares under DeepSpeed's ZeRO 1, 2 and 3.

Gradients are pieces of flat partitions, `parameter.grad` is empty, and what is stepped is an fp32
copy of the parameters.

In: DeepSpeed's optimiser, after the backward pass and before its step. ZeRO's own clipping must be
off (gradient_clipping 0): what is scaled here is what it steps with.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .deepspeed_ema import ZeroAverage
from .deepspeed_partitions import places, whole
from .sharded_tensors import Parameters, Tensors, norm_of


class ZeroTensors(Tensors):
    """With or without offload of the optimiser.

    Args:
        zero: `engine.optimizer`.
        average: The moving averages, if there are any.
    """

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
        find = _pieces_stage3 if hasattr(self.zero, "fp16_groups") else _pieces_stage12
        for parameter, piece in find(self.zero):
            self.owned.setdefault(id(parameter), []).append(piece)

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """This rank's pieces, still multiplied by the loss scale."""
        return [piece for p in parameters for piece in self.owned.get(id(p), [])]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Adds up squares over the ranks; one all-reduce of a vector."""
        total = torch.stack(
            [norm_of(self.pieces(group), groups[0][0]).square() for group in groups]
        )
        dist.all_reduce(total, group=self.zero.dp_process_group)
        self.finite = total.isfinite().all()
        return total.sqrt() / float(self.zero.loss_scale)

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Not to be had."""
        raise ValueError(
            "grad_clip: AGC needs whole rows, and ZeRO cuts inside them; use DDP, FSDP2 or "
            "another clipper"
        )

    def clamp(self, parameters: Parameters, limit: float) -> None:
        """In units of the unscaled gradient."""
        super().clamp(parameters, limit * float(self.zero.loss_scale))

    def drop(self, optimizer: torch.optim.Optimizer, parameters: Parameters, skip: Tensor) -> None:
        """Lets ZeRO take its step with an optimiser that passes over everything.

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
        for place in places(self.zero, parameter):
            place.flat[place.start :][: place.count].clamp_(low, high)
        if (own := getattr(parameter, "ds_tensor", None)) is not None:
            own.data.clamp_(low, high)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """Gathered from all ranks in stage 3."""
        return whole(parameter)

    def follow(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], decay: float) -> None:
        """In fp32, each rank its stretches; then all of them go where they are read."""
        assert self.average is not None
        self.average.follow(decay)

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


def _pieces_stage12(zero: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for i, parameters in enumerate(zero.params_in_partition):
        rank = dist.get_rank(group=zero.real_dp_process_group[i])
        offsets = zero.grad_partition_insertion_offset[i][rank]
        places = {int(offsets[zero.get_param_id(p)]): p for p in parameters}
        if zero.cpu_offload:
            flat = zero.single_partition_of_fp32_groups[i].grad
            ends = [*sorted(places)[1:], flat.numel()] if places else []
            for start, end in zip(sorted(places), ends, strict=True):
                yield places[start], flat[start:end]
            continue
        start = 0
        for piece in zero.averaged_gradients[i]:
            if start in places:  # padding has no parameter
                yield places[start], piece
            start += piece.numel()


def _pieces_stage3(zero: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for i, parameters in enumerate(zero.fp16_groups):
        if not zero.offload_optimizer:
            yield from zip(parameters, zero.averaged_gradients[i], strict=True)
            continue
        flat = zero.fp32_partitioned_groups_flat[i].grad
        for parameter in parameters:
            _, start, num_elements = zero.grad_position[zero.get_param_id(parameter)]
            yield parameter, flat.narrow(0, int(start), int(num_elements))
