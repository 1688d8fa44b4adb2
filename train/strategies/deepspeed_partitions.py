"""Where ZeRO keeps the values of a parameter, in each of its stages.

In: DeepSpeed's optimiser and a parameter of the module. Out: this rank's stretches of fp32
partitions, whole values put together from all ranks, and the reverse.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Place:
    """Where a stretch of a parameter lies in this rank's flat fp32 partition.

    Attributes:
        flat: the partition, which is what the optimiser steps.
        start: first element in the partition.
        first: first element in the (flattened) parameter.
        count: elements.
    """

    flat: Tensor
    start: int
    first: int
    count: int


def places(zero: Any, parameter: nn.Parameter) -> Iterator[Place]:
    """The stretch of a parameter that this rank steps, if there is one."""
    if hasattr(parameter, "ds_id"):
        if not parameter.requires_grad:
            return
        group, start, count = zero.grad_position[zero.get_param_id(parameter)]
        first = int(count) * dist.get_rank(zero.dp_process_group)
        count = min(int(count), parameter.ds_numel - first)  # type: ignore[operator]
        if count > 0:
            yield Place(zero.fp32_partitioned_groups_flat[group], int(start), first, count)
    elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Place(flat, here.start, there.start, here.numel)


def gathered(zero: Any, parameter: nn.Parameter, values: Callable[[Tensor], Tensor]) -> Tensor:
    """The whole of what ranks keep for a parameter, on the host (collective).

    Args:
        zero: DeepSpeed's optimiser.
        parameter: of the module.
        values: from a flat partition to the values of its elements: itself, or a state.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)
    own = [(place, values(place.flat)) for place in places(zero, parameter)]
    whole = torch.zeros(shape.numel(), device=parameter.device, dtype=torch.float32)
    for place, found in own:
        whole[place.first : place.first + place.count] = found[place.start :][: place.count]
    dist.all_reduce(whole, group=zero.dp_process_group)
    return whole.view(shape).cpu()


def whole(parameter: nn.Parameter) -> Tensor:
    """What the forward pass reads, on every rank (collective)."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def scatter(
    zero: Any, parameter: nn.Parameter, whole: Tensor, values: Callable[[Tensor], Tensor]
) -> None:
    """Writes this rank's stretch of `whole`; the reverse of `gathered`."""
    for place in places(zero, parameter):
        stretch = whole.flatten()[place.first : place.first + place.count]
        values(place.flat)[place.start :][: place.count].copy_(stretch)


def set_working_copy(parameter: nn.Parameter, whole: Tensor) -> None:
    """Sets what the forward pass reads: the parameter, in ZeRO 3 its slice and maybe all of it."""
    if parameter.numel() == whole.numel():
        parameter.copy_(whole.view_as(parameter))
    if (own := getattr(parameter, "ds_tensor", None)) is not None:
        flat = whole.flatten()
        first = own.numel() * dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        stretch = flat[first : first + own.numel()]
        own.data[: len(stretch)].copy_(stretch)
