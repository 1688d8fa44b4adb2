"""Exchange policies: how columns reach a rank; and sums over ranks that keep gradients.

The default is exact: values and gradients are those of one process that holds the global batch, for
any number of ranks and of rows on each. `Ring` is exact too, and keeps no other rank's columns.
`Local` compares each rank's rows with its own columns only. `Reinserted` and `Detached` exist to
reproduce older frameworks' gradients, never as a default.
"""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from .columns import Circling, Columns, Gathered, world

__all__ = [
    "AllGather",
    "Detached",
    "Exchange",
    "Local",
    "Reinserted",
    "Ring",
    "divided",
    "highest",
    "share",
    "total",
]


class Exchange:
    """A policy; see the module's docstring."""

    def open(self, *tensors: Tensor) -> Columns:
        """Joins this rank's columns (one row each) to those of the other ranks."""
        raise NotImplementedError

    def enter(self, feature: Tensor) -> Tensor:
        """Takes in a feature on its way to a term."""
        return feature


class AllGather(Exchange):
    """Every rank holds all columns (all-gather; reduce-scatter in the backward pass)."""

    def open(self, *tensors: Tensor) -> Columns:
        """Gathers at once."""
        return Gathered(tensors, *world())


class Ring(Exchange):
    """Columns go round from rank to rank, twice: they are asked for again in the backward pass.

    Memory is that of two ranks' columns, for any number of ranks.
    """

    def open(self, *tensors: Tensor) -> Columns:
        """Nothing travels before the first visit."""
        return Circling(tensors, *world()) if world()[1] > 1 else Gathered(tensors, 0, 1)


class Local(Exchange):
    """Each rank's own columns only: the loss of a rank's batch, averaged over ranks."""

    def open(self, *tensors: Tensor) -> Columns:
        """Nothing travels."""
        return Gathered(tensors, 0, 1)


class Reinserted(AllGather):
    """Encoder gradients 1/W of the exact ones, those of scale and bias exact.

    As of frameworks in which every rank computes the whole loss over features that were gathered
    without gradient, its own put back in (open_clip's default): data-parallel averaging then
    divides what each rank found for its own rows by the number of ranks W.
    """

    def enter(self, feature: Tensor) -> Tensor:
        """Divides the gradient by the number of ranks."""
        return divided(feature, world()[1])


class Detached(AllGather):
    """Gathered columns carry no gradient: a wrong direction, which some published runs used.

    Local rows against all columns, in both directions; an embedding gets a gradient as the row of
    its own softmax alone (SLIP's contrastive term). For softmax terms.
    """


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
        weight, added = values.new_tensor([float(len(values))]), values.sum()
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
