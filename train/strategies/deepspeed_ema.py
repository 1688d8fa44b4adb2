"""The moving average under DeepSpeed's ZeRO: every rank follows the stretches that it steps.

DeepSpeed turns all parameters of the module, the average's too, into the precision of the forward
pass, in which small steps are lost, and in stage 3 cuts them up.

In: DeepSpeed's optimiser and which parameter follows which. Out: fp32 values of the average, cut
like the optimiser's own; from them what its forward pass reads, and whole values for checkpoints.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .deepspeed_partitions import Place, places, set_working_copy

BUCKET = 1 << 26  # elements sent at once


class ZeroAverage:
    """The averages of a model and of its heads.

    Args:
        zero: DeepSpeed's optimiser.
        pairs: (average, online) parameters.
    """

    def __init__(self, zero: Any, pairs: Iterable[tuple[nn.Parameter, nn.Parameter]]):
        self.zero = zero
        self._kept = {
            average: [(place, _values(average, place)) for place in places(zero, online)]
            for average, online in pairs
            if online.requires_grad
        }

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._kept

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Moves all stretches, and brings them to where they are read (collective)."""
        kept = [pair for pairs in self._kept.values() for pair in pairs]
        if kept:
            online = [_stretch(place) for place, _ in kept]
            get_ema_multi_avg_fn(decay)([value for _, value in kept], online, None)
        for parameter, pairs in self._kept.items():
            if hasattr(parameter, "ds_tensor"):  # stage 3, which cuts both in the same places
                for place, value in pairs:
                    parameter.ds_tensor.data[: place.count].copy_(value)  # type: ignore
        at_hand = [p for p in self._kept if p.numel() == _shape(p).numel()]
        for bucket in _buckets(at_hand):
            flat = torch.cat([self._own(p).to(p.device, p.dtype) for p in bucket])
            dist.all_reduce(flat, group=self.zero.dp_process_group)
            sizes = [p.numel() for p in bucket]
            for parameter, values in zip(bucket, flat.split(sizes), strict=True):
                parameter.copy_(values.view_as(parameter))

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """One of its parameters in fp32, on the host (collective)."""
        flat = self._own(parameter).to(parameter.device)
        dist.all_reduce(flat, group=self.zero.dp_process_group)
        return flat.view(_shape(parameter)).cpu()

    def load(self, parameter: nn.Parameter, whole: Tensor) -> None:
        """The reverse of `whole`."""
        for place, value in self._kept[parameter]:
            value.copy_(whole.flatten()[place.first : place.first + place.count])
        set_working_copy(parameter, whole)

    def _own(self, parameter: nn.Parameter) -> Tensor:
        """All elements in fp32; those of other ranks are zero."""
        pairs = self._kept[parameter]
        device = pairs[0][1].device if pairs else None
        flat = torch.zeros(_shape(parameter).numel(), device=device)
        for place, value in pairs:
            flat[place.first : place.first + place.count] = value
        return flat


def _stretch(place: Place) -> Tensor:
    return place.flat.detach()[place.start :][: place.count]


def _values(average: nn.Parameter, place: Place) -> Tensor:
    """What the average begins with, in fp32, where the stretch that it follows is."""
    cut = getattr(average, "ds_tensor", None)
    own = average.detach().flatten()[place.first :] if cut is None else cut.data
    return own[: place.count].to(place.flat.device, torch.float32, copy=True)


def _shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
