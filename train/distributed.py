"""What ranks tell one another outside of the losses: flags, means, objects.

In: this rank's values. Out: those of all ranks, in the same order on each.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# (all ranks, their gloo group): one for everybody who asks, since each connects every two ranks.
_shared: tuple[Any, Any] = (None, None)


class ControlGroup:
    """A gloo process group for host-side values; does nothing in a single process.

    Every rank makes it, and calls it, in the same order.
    """

    def __init__(self):
        global _shared
        self.group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            if _shared[0] is not dist.group.WORLD:
                _shared = dist.group.WORLD, dist.new_group(backend="gloo")
            self.group = _shared[1]

    def start_highest(self, number: int) -> Callable[[], int]:
        """Starts a maximum over ranks; the returned function waits for it."""
        if self.group is None:
            return lambda: number
        value = torch.tensor([number])
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def wait() -> int:
            assert work is not None
            work.wait()
            return int(value.item())

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's picklable value in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values


def mean_over_ranks(share: Tensor) -> Tensor:
    """The global batch's loss from each rank's share []; one small all-reduce."""
    total = share.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(total)
        total /= dist.get_world_size()
    return total


def average(values: list[torch.Tensor]) -> list[float]:
    """Means over ranks of scalars, in one all-reduce."""
    stacked = torch.stack([v.detach().double().to(values[0].device) for v in values])
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= dist.get_world_size()
    return stacked.tolist()


def gather_objects(value: Any, world_size: int) -> list[Any]:
    """Returns every rank's (plain, picklable) value, in the order of the ranks."""
    if world_size == 1:
        return [value]
    values: list[Any] = [None] * world_size
    dist.all_gather_object(values, value)
    return values
