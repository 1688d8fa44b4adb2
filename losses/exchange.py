"""How the rows of one modality reach every rank: the only place in `losses` with collectives.

In: this rank's rows. Out: the columns they are compared with, and where this rank's own rows stand
among them. Gradients that other ranks send to our rows come back through the backward pass.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def world() -> tuple[int, int]:
    """Returns (rank, world size); (0, 1) when no process group exists."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@dataclass(frozen=True)
class Columns:
    """Rows of all ranks, in rank order, and the index of this rank's first row."""

    values: Float[Tensor, "columns d"]
    offset: int


class Exchange(Protocol):
    """How columns reach a rank. Every rank must call it with the same number of rows."""

    def __call__(self, rows: Float[Tensor, "rows d"]) -> Columns: ...


class _AllGather(torch.autograd.Function):
    """All-gather whose backward is a reduce-scatter (a sum: no factor of the world size)."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        rank, world_size = world()
        ctx.rank, ctx.world_size = rank, world_size
        rows = rows.contiguous()
        out = rows.new_empty(world_size * rows.shape[0], *rows.shape[1:])
        dist.all_gather_into_tensor(out, rows)
        return out

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (grad,) = grads
        grad = grad.contiguous()
        out = grad.new_empty(grad.shape[0] // ctx.world_size, *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad)
        return out


class AllGather:
    """Every rank holds all columns; exact gradients (all-gather, reduce-scatter backward)."""

    def __call__(self, rows: Float[Tensor, "rows d"]) -> Columns:
        """Gathers `rows` of all ranks in rank order."""
        rank, world_size = world()
        if world_size == 1:
            return Columns(rows, 0)
        values = _AllGather.apply(rows)
        assert isinstance(values, Tensor)
        return Columns(values, rank * rows.shape[0])


class _Total(torch.autograd.Function):
    """log sum exp over ranks of partial ones; each rank gets those of its own columns."""

    @staticmethod
    def forward(ctx, partial: Tensor) -> Tensor:
        rank, world_size = world()
        most = partial.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        total = (partial - most).exp_()
        dist.all_reduce(total)
        total = total.log_().add_(most)
        ctx.save_for_backward((partial - total).exp_())
        return total.chunk(world_size)[rank].clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        (grad,) = grads
        (share,) = ctx.saved_tensors
        everyones = torch.empty_like(share)
        dist.all_gather_into_tensor(everyones, grad.contiguous())
        return everyones * share


def own_columns_total(partial: Float[Tensor, "columns"]) -> Float[Tensor, "rows"]:
    """Joins log sum exp over this rank's rows to that over all ranks' rows.

    Args:
        partial: For every column of the global batch, over the rows of this rank.

    Returns:
        For this rank's own columns, over the rows of all ranks. Only vectors travel.
    """
    if world()[1] == 1:
        return partial
    total = _Total.apply(partial)
    assert isinstance(total, Tensor)
    return total
