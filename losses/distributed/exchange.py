"""Exchange policies: how columns reach a rank.

The default is exact: values and gradients are those of one process that holds the global batch, for
any number of ranks and of rows on each. `Ring` is exact too, and keeps no other rank's columns.
`Local` compares each rank's rows with its own columns only. `NoGradGatherKeepLocal` and
`NoGradGather` exist to reproduce older frameworks' gradients, never as a default.
"""

from torch import Tensor

from .collectives import divided, world
from .columns import Columns, GatheredColumns, RingColumns


class Exchange:
    """A policy; see the module's docstring."""

    def open(self, *tensors: Tensor) -> Columns:
        """Joins this rank's columns (one row each) to those of the other ranks."""
        raise NotImplementedError

    def enter(self, feature: Tensor) -> Tensor:
        """Returns a feature as the term is to read it."""
        return feature


class AllGather(Exchange):
    """Every rank holds all columns (all-gather; reduce-scatter in the backward pass)."""

    def open(self, *tensors: Tensor) -> Columns:
        return GatheredColumns(tensors, *world())


class Ring(Exchange):
    """Columns go round from rank to rank, twice: they are sent again in the backward pass.

    Memory is that of two ranks' columns, for any number of ranks.
    """

    def open(self, *tensors: Tensor) -> Columns:
        """Nothing travels before the first block."""
        return RingColumns(tensors, *world()) if world()[1] > 1 else GatheredColumns(tensors, 0, 1)


class Local(Exchange):
    """Each rank's own columns only: the loss of a rank's batch, averaged over ranks."""

    def open(self, *tensors: Tensor) -> Columns:
        return GatheredColumns(tensors, 0, 1)


class NoGradGatherKeepLocal(AllGather):
    """Encoder gradients 1/W of the exact ones, those of scale and bias exact.

    As of frameworks in which every rank computes the whole loss over features that were gathered
    without gradient, its own put back in (open_clip's default): data-parallel averaging then
    divides what each rank found for its own rows by the number of ranks W.
    """

    def enter(self, feature: Tensor) -> Tensor:
        """Divides the gradient by the number of ranks."""
        return divided(feature, world()[1])


class NoGradGather(AllGather):
    """Gathered columns carry no gradient: a wrong direction, which some published runs used.

    Local rows against all columns, in both directions; an embedding gets a gradient as the row of
    its own softmax alone (SLIP's contrastive term). For softmax terms.
    """
