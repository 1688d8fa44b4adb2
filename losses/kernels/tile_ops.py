"""What happens to one tile of logits of any size: products, sums of exponentials, their gradient.

In: features; logits [r, c]. Out: logits; log sum exp of rows and columns; gradients by the logits.
Plain functions of tensors in torch; on CUDA the same in Triton, which reads the tile once
(`tile_ops_triton`) and multiplies on tensor cores (`products_triton`). `of(tensor)` chooses.

Products have float32's accuracy, whatever a program has set for its other ones
(`torch.set_float32_matmul_precision`): rounded to TF32, gradients err by 0.1% and more.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Settings of torch under which float32 is multiplied as it is.
EXACT = ("none", "ieee")
BACKENDS: tuple[Any, ...] = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
)


class TileOps(Protocol):
    """The functions of a tile."""

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """Writes a b to `out`."""
        ...

    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """Adds a b to `out`."""
        ...

    def log_sum_exps(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log sum exp of each row [r] and of each column [c]."""
        ...

    def softmax_grad(
        self,
        logits: Tensor,
        over_columns: Tensor,
        over_rows: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        out: Tensor,
    ) -> Tensor:
        """Writes g_i exp(l_ij - row_i) + h_j exp(l_ij - column_j) to `out`.

        Args:
            logits: l [r, c], which may be overwritten.
            over_columns, over_rows: row [r] and column [c], finite.
            by_row, by_column: g [r] and h [c].
            out: [r, c].
        """
        ...


class TorchTileOps:
    """The functions in torch; but for products, without graph breaks."""

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return exactly(torch.mm, a, b, out=out)

    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        return exactly(out.addmm_, a, b)

    def log_sum_exps(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return logits.logsumexp(1), logits.logsumexp(0)

    def softmax_grad(
        self,
        logits: Tensor,
        over_columns: Tensor,
        over_rows: Tensor,
        by_row: Tensor,
        by_column: Tensor,
        out: Tensor,
    ) -> Tensor:
        torch.sub(logits, over_columns[:, None], out=out)
        out.exp_().mul_(by_row[:, None])
        return out.add_(logits.sub_(over_rows).exp_().mul_(by_column))


TORCH = TorchTileOps()


def of(tensor: Tensor) -> TileOps:
    """Returns the fastest form for a tensor's device and precision."""
    is_fused = tensor.is_cuda and tensor.dtype == torch.float32
    return _fused(tensor.device) if is_fused else TORCH


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Returns a b, with gradients, in the precision of a tile's products."""
    return _Product.apply(a, b)  # type: ignore[return-value]


def exactly(function: Callable[..., Tensor], *args: Any, **options: Any) -> Tensor:
    """Calls a function of torch whose products round no float32 to fewer bits."""
    lowered = [b for b in BACKENDS if b.fp32_precision not in EXACT]
    if not lowered:
        return function(*args, **options)
    before = [backend.fp32_precision for backend in lowered]
    try:
        for backend in lowered:
            backend.fp32_precision = "ieee"
        return function(*args, **options)
    finally:
        for backend, precision in zip(lowered, before, strict=True):
            backend.fp32_precision = precision


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return of(a).product(a, b, a.new_empty(len(a), b.shape[1]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (a, b), (grad,) = ctx.saved_tensors, grads
        needs_a, needs_b = ctx.needs_input_grad
        ops = of(grad)
        return (
            ops.product(grad, b.T, grad.new_empty(a.shape)) if needs_a else None,
            ops.product(a.T, grad, grad.new_empty(b.shape)) if needs_b else None,
        )


@cache
def _fused(device: torch.device) -> TileOps:
    # Triton wants Ampere or newer; on Windows there is none.
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return TORCH
    try:
        from .tile_ops_triton import FUSED
    except ImportError:
        return TORCH
    return FUSED
