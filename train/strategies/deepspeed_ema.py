"""The moving average under DeepSpeed's ZeRO: every rank follows the fragments that it steps.

DeepSpeed turns all parameters of the module, the average's too, into the precision of the forward
pass, in which small steps are lost, and in stage 3 cuts them up.

In: DeepSpeed's optimizer and which parameter follows which. Out: fp32 values of the average, cut
like the optimizer's own; from them what its forward pass reads, and whole values for checkpoints.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...models.distributed_checkpoint import StoredTensor
from ..torch_internals import move_toward
from .deepspeed_internals import (
    Fragment,
    all_reduce,
    find_fragments,
    meeting_device,
    set_working_copy,
    whole_shape,
    working_slice,
)
from .pieces import Piece, elements_of

BUCKET = 1 << 26  # elements sent at once


class ZeroAverage:
    """The averages of a model and of its heads, by (average, online) parameters."""

    def __init__(self, zero: Any, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]):
        self.zero = zero
        self._fragments = {
            average: [(f, _initial_values(average, f)) for f in find_fragments(zero, online)]
            for average, online in pairs
            if online.requires_grad
        }

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._fragments

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """Moves all fragments, and brings them to where they are read (collective)."""
        if fragments := [pair for pairs in self._fragments.values() for pair in pairs]:
            online = [fragment.of_partition(fragment.flat.detach()) for fragment, _ in fragments]
            move_toward([value for _, value in fragments], online, weight)
        for parameter, pairs in self._fragments.items():
            # Stage 3 cuts the average and what it follows in the same places.
            if (cut := working_slice(parameter)) is not None:
                for fragment, value in pairs:
                    cut[: fragment.count].copy_(value)
        at_hand = [p for p in self._fragments if p.numel() == whole_shape(p).numel()]
        for bucket in _buckets(at_hand):
            flat = torch.cat([self._own_elements(p).to(p.device, p.dtype) for p in bucket])
            all_reduce(self.zero, flat)
            sizes = [p.numel() for p in bucket]
            for parameter, values in zip(bucket, flat.split(sizes), strict=True):
                parameter.copy_(values.view_as(parameter))

    def gather(self, parameter: nn.Parameter) -> Tensor:
        """Returns one of its parameters in fp32, on the host (collective)."""
        flat = self._own_elements(parameter).to(meeting_device())
        all_reduce(self.zero, flat)
        return flat.view(whole_shape(parameter)).cpu()

    def piece(self, parameter: nn.Parameter) -> Piece:
        """Returns what this rank keeps of one of its parameters, in fp32."""
        for fragment, value in self._fragments[parameter]:
            return Piece(value, whole_shape(parameter), fragment.first)
        return Piece(torch.empty(0), whole_shape(parameter), 0)

    def load(self, parameter: nn.Parameter, whole: Tensor | StoredTensor) -> None:
        """Takes back what `gather` or all ranks' `piece` gave."""
        for fragment, value in self._fragments[parameter]:
            value.copy_(elements_of(whole, fragment.first, fragment.count))
        set_working_copy(parameter, whole)

    def _own_elements(self, parameter: nn.Parameter) -> Tensor:
        """Returns all elements in fp32, those of other ranks being zero."""
        pairs = self._fragments[parameter]
        device = pairs[0][1].device if pairs else None
        flat = torch.zeros(whole_shape(parameter).numel(), device=device)
        for fragment, value in pairs:
            fragment.of_parameter(flat).copy_(value)
        return flat


def _initial_values(average: nn.Parameter, fragment: Fragment) -> Tensor:
    """Returns what the average begins with, in fp32, on the device of what it follows."""
    cut = working_slice(average)
    values = fragment.of_parameter(average.detach()) if cut is None else cut[: fragment.count]
    return values.to(fragment.flat.device, torch.float32, copy=True)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
