"""A feature that travels before the loss asks for it, and whose gradients come home late.

In: this rank's rows, as soon as their tower has made them. Out: those of all ranks, when a loss
opens them; the gradients that losses send back, where the tower's backward pass begins. Between,
the device computes: the other tower forward, and the other tower backward.

The numbers are those of an exchange that waits: the same collectives of the same tensors.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

# By the identity of the tensor that the losses are given, with that tensor.
_sent: dict[int, tuple[Tensor, "Sent"]] = {}


def send(rows: Tensor, world_size: int) -> Tensor:
    """Starts to gather rows, of which each rank has as many; returns them, as losses are to read.

    What is returned is the key: a loss that opens another tensor, however equal, gathers it itself.
    """
    started = Sent(rows, world_size)
    key: Tensor = _Arrives.apply(rows, started)  # type: ignore[assignment]
    _sent[id(key)] = key, started
    return key


def sent(rows: Tensor) -> "Sent | None":
    """Returns what has been started for these rows."""
    return _sent[id(rows)][1] if id(rows) in _sent else None


def forget() -> None:
    """Ends a step's forward pass: what nobody asked for is waited for all the same."""
    for _, started in _sent.values():
        started.gathered()
    _sent.clear()


class Sent:
    """Rows on their way.

    Attributes:
        needs_grad: whether gradients may come home late: somebody waits for them.
    """

    def __init__(self, rows: Tensor, world_size: int):
        self.needs_grad = rows.requires_grad
        rows = rows.detach().contiguous()
        self._all = rows.new_empty(world_size * len(rows), *rows.shape[1:])
        self._work: Any = dist.all_gather_into_tensor(self._all, rows, async_op=True)
        self._sending = rows  # stays alive until it has been sent
        self._returning: list[tuple[Any, Tensor, Tensor, Tensor | float]] = []

    def gathered(self) -> Tensor:
        """Returns the rows of all ranks."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._all

    def return_gradient(self, gradient: Tensor, factor: Tensor | float) -> None:
        """Starts to add up the ranks' gradients of all rows; this rank's come with `gradient`."""
        own = gradient.new_empty(self._sending.shape)
        work = dist.reduce_scatter_tensor(own, gradient, async_op=True)
        self._returning.append((work, own, gradient, factor))

    def gradient(self) -> Tensor | None:
        """Returns the sum of what was started, times its factors; None: nothing was."""
        total = None
        for work, own, _, factor in self._returning:
            work.wait()
            own.mul_(factor)
            total = own if total is None else total.add_(own)
        self._returning.clear()
        return total


class _Arrives(torch.autograd.Function):
    """The rows themselves; their gradient is what losses gave, and what they sent on its way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: Sent) -> Tensor:
        ctx.sent = sent
        ctx.set_materialize_grads(False)
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        (grad,), late = grads, ctx.sent.gradient()
        if grad is None or late is None:
            return (grad if late is None else late), None
        return grad + late, None
