"""The collectives of the losses: plain, differentiable, and over ragged batches.

In: this rank's tensors. Out: those of all ranks, sums, maxima and this rank's share of a mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

# Rows of every rank's batch, where they are known to be equally many; see `equal_rows`.
_batch_rows: int | None = None


def world() -> tuple[int, int]:
    """Returns (rank, world size); (0, 1) when no process group exists."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(rows: Tensor, counts: list[int]) -> Tensor:
    """Returns the rows of all ranks in rank order, however many each has."""
    most = max(counts)
    gathered = rows.new_empty(len(counts) * most, *rows.shape[1:])
    if not most:
        return gathered
    dist.all_gather_into_tensor(gathered, pad_rows(rows, most))
    if min(counts) == most:
        return gathered
    return torch.cat([block[:n] for block, n in zip(gathered.split(most), counts, strict=True)])


def scatter_sum(rows: Tensor, counts: list[int], rank: int) -> Tensor:
    """Adds up the ranks' rows and returns those of this rank: the way back of `gather`."""
    most = max(counts)
    own = rows.new_empty(most, *rows.shape[1:])
    if not most:
        return own
    if min(counts) < most:
        rows = torch.cat([pad_rows(block, most) for block in rows.split(counts)])
    dist.reduce_scatter_tensor(own, rows.contiguous())
    return own[: counts[rank]]


@contextmanager
def equal_rows(batch_rows: int | None) -> Iterator[None]:
    """Inside, every rank has as many rows as this one, and none asks the others how many.

    Asking makes the host wait for the device twice in every step.

    Args:
        batch_rows: of every rank's batch, which rows are a multiple of; None: ranks may have any
            number of rows, and ask.
    """
    global _batch_rows
    before, _batch_rows = _batch_rows, batch_rows
    try:
        yield
    finally:
        _batch_rows = before


def row_counts(rows: Tensor, world_size: int) -> list[int]:
    """Returns how many rows each rank has.

    Raises:
        ValueError: a term has left out rows where ranks are to have equally many.
    """
    if world_size == 1:
        return [len(rows)]
    if _batch_rows is not None:
        if len(rows) % _batch_rows:
            raise ValueError(
                f"a term compares {len(rows)} rows of a batch of {_batch_rows} with those of other "
                "ranks, which may have others: put `with equal_rows(None):` (of "
                "counterpoint.losses.distributed.collectives) around it, or leave samples out by "
                "counterpoint.losses.wrappers.masked.Masked"
            )
        return [len(rows)] * world_size
    count = torch.tensor([len(rows)], device=rows.device)
    counts = count.new_empty(world_size)
    dist.all_gather_into_tensor(counts, count)
    return counts.tolist()


def pad_rows(rows: Tensor, num_rows: int) -> Tensor:
    if len(rows) == num_rows:
        return rows.contiguous()
    padded = rows.new_zeros(num_rows, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


def total(tensor: Tensor) -> Tensor:
    """Returns the sum over ranks, with gradients: each rank's are those of the sum of all losses.

    A value computed from it is the same on every rank, so that data-parallel averaging, which
    divides by the number of ranks, gives the gradients of one process.
    """
    return _Total.apply(tensor) if world()[1] > 1 else tensor  # type: ignore[return-value]


def highest(tensor: Tensor) -> Tensor:
    """Returns the maximum over ranks of each element, without gradient."""
    most = tensor.detach().clone()
    if world()[1] > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def divided(tensor: Tensor, divisor: int) -> Tensor:
    """Returns the tensor; its gradient is divided."""
    return _Divided.apply(tensor, divisor)  # type: ignore[return-value]


def share(
    values: Float[Tensor, "b"], weights: Float[Tensor, "b"] | None = None
) -> Float[Tensor, ""]:
    """Returns this rank's share of the mean of all ranks' values (0 when there are none).

    Args:
        values: this rank's, as many as it has.
        weights: of the mean, 1 unless given; 0 leaves a value out, whatever it is.
    """
    if weights is None:
        # Filled there: a number that is sent makes the host wait for the device.
        weight, added = values.new_full((1,), float(len(values))), values.sum()
    else:
        kept = values.masked_fill(weights == 0, 0.0)
        weight, added = weights.detach().sum().view(1).to(values.dtype), (kept * weights).sum()
    world_size = world()[1]
    if world_size > 1:
        weight = weight.clone()
        dist.all_reduce(weight)
    tiny = torch.finfo(weight.dtype).tiny
    return added / (weight / world_size).clamp_min(tiny).squeeze(0)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        out = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out


class _Divided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, divisor: int) -> Tensor:
        ctx.divisor = divisor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] / ctx.divisor, None
