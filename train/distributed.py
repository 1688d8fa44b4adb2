"""Flags, means and objects of all ranks, outside of the losses.

In: this rank's values. Out: those of all ranks, in rank order.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..losses.distributed.collectives import world

# (all ranks, their gloo group): one for all callers, since each connects every two ranks.
_shared: tuple[Any, Any] = (None, None)


class ControlGroup:
    """A gloo process group for host-side values; does nothing in a single process.

    Every rank makes it, and calls it, in the same order.
    """

    def __init__(self):
        global _shared
        self.group: Any = None
        if world()[1] > 1:
            if _shared[0] is not dist.group.WORLD:
                _shared = dist.group.WORLD, dist.new_group(backend="gloo")
            self.group = _shared[1]

    def start_highest(self, numbers: Sequence[int]) -> Callable[[], list[int]]:
        """Starts a maximum over ranks of each number; the returned function waits for it."""
        if self.group is None:
            return lambda: list(numbers)
        values = torch.tensor(numbers)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def wait() -> list[int]:
            assert work is not None
            work.wait()
            return values.tolist()

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's picklable value in rank order."""
        return [value] if self.group is None else gather_objects(value, self.group)


def gather_objects(value: Any, group: Any = None) -> list[Any]:
    """Returns every rank's (plain, picklable) value in rank order; group: None: all ranks."""
    if world()[1] == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def mean_over_ranks(value: Tensor) -> Tensor:
    """Returns the mean over ranks of a tensor; one all-reduce."""
    return _average(value.detach().clone())


def numbers_of_ranks(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Returns every rank's numbers as float64 on the host [ranks, numbers]; waits for the device.

    Ranks give equally many; one all-gather.
    """
    own = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    world_size = world()[1]
    if world_size == 1:
        return own[None].cpu()
    table = own.new_empty(world_size * len(own))
    dist.all_gather_into_tensor(table, own)
    return table.view(world_size, -1).cpu()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Averages gradients in place, for a backward pass that no wrapper of the strategy sees."""
    for parameter in parameters:
        if parameter.grad is not None:
            _average(parameter.grad)


def _average(tensor: Tensor) -> Tensor:
    if (world_size := world()[1]) > 1:
        dist.all_reduce(tensor)
        tensor /= world_size
    return tensor
