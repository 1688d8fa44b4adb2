"""Columns of all ranks for one reduction: values forward, gradients backward.

In: this rank's tensors, with one row a column. Out: blocks of the columns of all ranks. Also the
small vectors (one number a column) by which ranks complete one another's sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ahead import sent
from .collectives import gather, pad_rows, row_counts, scatter_sum


class Columns(ABC):
    """The columns of a group of ranks, numbered through in rank order.

    Args:
        tensors: this rank's, one row a column; only the first may need a gradient, which is
            given by `gradient` or `return_gradient`.
        rank, world_size: of the group that shares its columns.

    Attributes:
        counts: columns of each rank.
        total: columns of all ranks.
        first: number of this rank's first column.
        num_blocks: in which they come.
    """

    num_blocks = 1

    def __init__(self, tensors: tuple[Tensor, ...], rank: int, world_size: int):
        self.rank, self.world_size = rank, world_size
        self.tensors = tuple(tensor.detach() for tensor in tensors)
        self.counts = row_counts(tensors[0], world_size)
        self.total, self.first = sum(self.counts), sum(self.counts[:rank])

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Yields blocks of columns: their numbers, and their rows of all tensors."""

    @abstractmethod
    def blocks_with_grad(self) -> Iterator[tuple[slice, tuple[Tensor, ...], Tensor]]:
        """Yields the same blocks with a tensor to which their gradients are to be added."""

    @abstractmethod
    def gradient(self) -> Tensor:
        """Returns the gradients of this rank's columns from all ranks, after `blocks_with_grad`."""

    def return_gradient(self, factor: Tensor) -> Tensor | None:
        """Returns `gradient` times a factor [1]; None: it is on its way to whoever sent ahead."""
        return self.gradient().mul_(factor)

    def where(self, rank: int) -> slice:
        """Returns the numbers of a rank's columns."""
        first = sum(self.counts[:rank])
        return slice(first, first + self.counts[rank])

    def own(self, vector: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """Returns this rank's part of a vector over all columns."""
        return vector[self.where(self.rank)]

    def all_gather(self, own: Float[Tensor, "m"]) -> Float[Tensor, "n"]:
        """Returns the vector over all columns whose parts the ranks hold."""
        return own if self.world_size == 1 else gather(own, self.counts)

    def sum(self, partial: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Adds up the ranks' vectors over all columns."""
        if self.world_size == 1 or not self.total:
            return partial
        total = partial.clone()
        dist.all_reduce(total)
        return total

    def log_sum_exp(self, partial: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Joins the ranks' log sum exp over their rows to that over all rows."""
        if self.world_size == 1 or not self.total:
            return partial
        most = partial.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        # Where no rank has anything, zeros are added up: log 0.
        most.masked_fill_(most == -torch.inf, 0.0)
        total = (partial - most).exp_()
        dist.all_reduce(total)
        return total.log_().add_(most)


class GatheredColumns(Columns):
    """Every rank holds all columns, in one block; gradients go back in one reduce-scatter."""

    def __init__(self, tensors: tuple[Tensor, ...], rank: int, world_size: int):
        super().__init__(tensors, rank, world_size)
        self._sent = sent(tensors[0]) if world_size > 1 else None
        if self._sent is not None:
            gathered = self._sent.gathered()
            self.tensors = gathered, *(gather(t, self.counts) for t in self.tensors[1:])
        elif world_size > 1:
            self.tensors = tuple(gather(t, self.counts) for t in self.tensors)
        self._gradient: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        yield slice(0, self.total), self.tensors

    def blocks_with_grad(self) -> Iterator[tuple[slice, tuple[Tensor, ...], Tensor]]:
        self._gradient = torch.zeros_like(self.tensors[0])
        yield slice(0, self.total), self.tensors, self._gradient

    def gradient(self) -> Tensor:
        """Adds up the ranks' gradients; each gets those of its own columns."""
        assert self._gradient is not None
        gradient, self._gradient = self._gradient, None
        return gradient if self.world_size == 1 else scatter_sum(gradient, self.counts, self.rank)

    def return_gradient(self, factor: Tensor) -> Tensor | None:
        if self._sent is None or not self._sent.needs_grad:
            return super().return_gradient(factor)
        assert self._gradient is not None
        gradient, self._gradient = self._gradient, None
        self._sent.return_gradient(gradient, factor)
        return None


class RingColumns(Columns):
    """Each rank holds the columns of one rank at a time and hands them on: a ring.

    Nothing of other ranks is kept: they come round again in the backward pass, with the gradients
    that have been added up so far.
    """

    def __init__(self, tensors: tuple[Tensor, ...], rank: int, world_size: int):
        super().__init__(tensors, rank, world_size)
        self.tensors = tuple(pad_rows(t, max(1, *self.counts)) for t in self.tensors)
        self.num_blocks = world_size
        self._gradient: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, tuple[Tensor, ...]]]:
        """Yields the ranks' columns: this rank's, then the one's before it, and so on."""
        for owner, held in self._rounds():
            yield self.where(owner), tuple(t[: self.counts[owner]] for t in held)

    def blocks_with_grad(self) -> Iterator[tuple[slice, tuple[Tensor, ...], Tensor]]:
        """Yields the same; the gradients travel with the columns and come home at last."""
        transfer = None
        for owner, held in self._rounds():
            count, gradient = self.counts[owner], torch.zeros_like(self.tensors[0])
            yield self.where(owner), tuple(t[:count] for t in held), gradient[:count]
            # What other ranks have added up has come while this one computed.
            if transfer is not None:
                gradient += transfer.wait()[0]
            transfer = self._send_on((gradient,), len(held))
        assert transfer is not None
        (self._gradient,) = transfer.wait()

    def gradient(self) -> Tensor:
        assert self._gradient is not None
        return self._gradient[: self.counts[self.rank]]

    def _rounds(self) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
        held = self.tensors
        for turn in range(self.world_size):
            # On their way while the block is worked on.
            transfers = self._send_on(held, 0) if turn + 1 < self.world_size else None
            yield (self.rank - turn) % self.world_size, held
            held = held if transfers is None else transfers.wait()

    def _send_on(self, tensors: tuple[Tensor, ...], tag: int) -> "_Transfers":
        """Starts to send to the next rank and to receive from the one before."""
        following, before = ((self.rank + step) % self.world_size for step in (1, -1))
        received = tuple(torch.empty_like(t) for t in tensors)
        operations = []
        for i, (out, into) in enumerate(zip(tensors, received, strict=True), tag):
            operations.append(dist.P2POp(dist.isend, out, following, tag=i))
            operations.append(dist.P2POp(dist.irecv, into, before, tag=i))
        return _Transfers(dist.batch_isend_irecv(operations), tensors, received)


class _Transfers:
    """Transfers under way; what is sent stays alive until they are done."""

    def __init__(self, works: list[Any], sent: tuple[Tensor, ...], received: tuple[Tensor, ...]):
        self._works, self._sent, self._received = works, sent, received

    def wait(self) -> tuple[Tensor, ...]:
        """Returns what was received."""
        for work in self._works:
            work.wait()
        return self._received


def join(own: Tensor, columns: Columns) -> Tensor:
    """Returns the rows of all ranks as one tensor; its gradients go back to their owners.

    Args:
        own: this rank's.
        columns: what an exchange made of them first (and of what travels with them).
    """
    return _Joined.apply(own, columns)  # type: ignore[return-value]


class _Joined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, columns: Columns) -> Tensor:
        ctx.columns = columns
        joined = own.new_empty(columns.total, *own.shape[1:])
        for where, (block, *_) in columns.blocks():
            joined[where] = block
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        for where, _, gradient in ctx.columns.blocks_with_grad():
            gradient.add_(grads[0][where])
        return ctx.columns.gradient(), None
