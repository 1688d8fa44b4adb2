"""Reductions over all pairs of rows and columns, without ever holding all pairs.

In: rows [b, d] and columns [n, d], the factor of their inner products, and where the positive
column of each row is. Out: vectors. A block of rows against all columns is made, reduced and
thrown away, and made again in the backward pass: memory is O((b + n) d) and a block. Every
gradient is exact.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Of one block of logits: large enough for matrix products to run at full speed, small against the
# features of a batch that needs blocks.
TILE_BYTES = 32 << 20
# Exponentials of logits within these bounds, and sums of them, neither overflow nor vanish in fp32:
# they need no shift by the maximum, so that one exponential serves both directions.
SAFE_LOGIT = 60.0


def log_sum_exp(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "n d"],
    scale: Float[Tensor, "1"],
    offset: int,
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, "b"], Float[Tensor, "n"], Float[Tensor, "b"]]:
    """Returns log sum exp of the logits s u_i.v_j over columns, and over rows, in one pass.

    Args:
        rows: u, float32 or float64.
        columns: v.
        scale: s.
        offset: The positive column of row i is offset + i.
        tile_bytes: Memory of a block of logits; two or three such blocks exist at a time.

    Returns:
        Over columns, over rows, and the logits of the positive pairs.
    """
    assert 0 <= offset <= len(columns) - len(rows), (offset, len(rows), len(columns))
    return _LogSumExp.apply(rows, columns, scale, offset, tile_bytes)  # type: ignore


def softplus_sum(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "n d"],
    scale: Float[Tensor, "1"],
    bias: Float[Tensor, "1"],
    offset: int,
    tile_bytes: int = TILE_BYTES,
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Returns sum_j log(1 + exp(s u_i.v_j + c)) of each row i.

    Args:
        rows: u, float32 or float64.
        columns: v.
        scale: s.
        bias: c.
        offset: The positive column of row i is offset + i.
        tile_bytes: Memory of a block of logits; two such blocks exist at a time.

    Returns:
        The sums, and the logits of the positive pairs.
    """
    assert 0 <= offset <= len(columns) - len(rows), (offset, len(rows), len(columns))
    return _SoftplusSum.apply(rows, columns, scale, bias, offset, tile_bytes)  # type: ignore


class _Blocks:
    """Blocks of rows against all columns, one after another in the same memory."""

    def __init__(self, rows: Tensor, columns: Tensor, scale: Tensor, offset: int, tile_bytes: int):
        self.rows, self.columns, self.scale, self.offset = rows, columns, scale, offset
        num_rows, width = rows.shape[0], max(1, columns.shape[0])
        most = max(1, tile_bytes // (width * rows.element_size()))
        # Of equal height: a thin last one would run at a fraction of the speed.
        self.num_blocks = -(-num_rows // most)
        self.height = -(-num_rows // max(1, self.num_blocks))
        self._memory: Tensor | None = None

    def __iter__(self) -> Iterator[slice]:
        num_rows = self.rows.shape[0]
        for first in range(0, num_rows, max(1, self.height)):
            yield slice(first, min(first + self.height, num_rows))

    def logits(self, block: slice) -> Tensor:
        """Returns the logits of a block, in memory that the next call overwrites."""
        if self._memory is None:
            self._memory = self.new_memory()
        out = self._memory[: block.stop - block.start]
        return torch.mm(self.rows[block] * self.scale, self.columns.T, out=out)

    def positives(self, block: slice, pairs: Tensor) -> Tensor:
        """Returns a view of the positive pairs of a block."""
        return pairs.diagonal(self.offset + block.start)[: block.stop - block.start]

    def new_memory(self) -> Tensor:
        """Returns memory for one more block."""
        return self.rows.new_empty(self.height, self.columns.shape[0])

    def gradients(
        self, slopes: Iterator[tuple[slice, Tensor]], by_positive: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of rows, columns and scale.

        Args:
            slopes: Each block with the derivatives by its logits, in memory that may be changed.
            by_positive: Further derivatives by the positive logits [b].
        """
        by_rows, by_columns = torch.empty_like(self.rows), torch.zeros_like(self.columns)
        for block, slope in slopes:
            self.positives(block, slope).add_(by_positive[block])
            torch.mm(slope, self.columns, out=by_rows[block])
            by_columns.addmm_(slope.T, self.rows[block])
        by_scale = (by_rows * self.rows).sum().view_as(self.scale)
        return by_rows.mul_(self.scale), by_columns.mul_(self.scale), by_scale


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, offset: int, tile_bytes: int
    ):
        blocks = _Blocks(rows, columns, scale, offset, tile_bytes)
        over_columns, positive = (rows.new_empty(rows.shape[0]) for _ in range(2))
        is_safe = _is_safe(rows, columns, scale)
        # Sums of exponentials, or their logarithms.
        over_rows = rows.new_full((columns.shape[0],), 0.0 if is_safe else -torch.inf)
        kept: list[Tensor] = []
        for block in blocks:
            logits = blocks.logits(block)
            positive[block] = blocks.positives(block, logits)
            if is_safe:
                powers = logits.exp_()
                over_columns[block] = powers.sum(1)
                over_rows += powers.sum(0)
                # A single block is small enough to be kept.
                kept = [powers] if blocks.num_blocks == 1 else []
            else:
                over_columns[block] = logits.logsumexp(1)
                over_rows = torch.logaddexp(over_rows, logits.logsumexp(0))
        if is_safe:
            over_columns.log_()
            over_rows.log_()
        ctx.save_for_backward(rows, columns, scale, over_columns, over_rows, *kept)
        ctx.place, ctx.is_safe = (offset, tile_bytes), is_safe
        return over_columns, over_rows, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, columns, scale, over_columns, over_rows, *kept = ctx.saved_tensors
        by_row, by_column, by_positive = grads
        blocks = _Blocks(rows, columns, scale, *ctx.place)
        slopes = _slopes_safe if ctx.is_safe else _slopes
        made = slopes(blocks, over_columns, over_rows, by_row, by_column, *kept)
        return *blocks.gradients(made, by_positive), None, None


def _slopes(
    blocks: _Blocks, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor
) -> Iterator[tuple[slice, Tensor]]:
    """Yields g_i exp(l_ij - row_i) + h_j exp(l_ij - column_j), for logits of any size."""
    memory = blocks.new_memory()
    for block in blocks:
        logits = blocks.logits(block)
        slope = memory[: len(logits)]
        torch.sub(logits, over_columns[block, None], out=slope)
        slope.exp_().mul_(by_row[block, None])
        yield block, slope.add_(logits.sub_(over_rows).exp_().mul_(by_column))


def _slopes_safe(
    blocks: _Blocks,
    over_columns: Tensor,
    over_rows: Tensor,
    by_row: Tensor,
    by_column: Tensor,
    kept: Tensor | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the same with one exponential: exp(l_ij) (g_i exp(-row_i) + h_j exp(-column_j))."""
    by_row, by_column = by_row * (-over_columns).exp(), by_column * (-over_rows).exp()
    memory = blocks.new_memory()
    for block in blocks:
        powers = blocks.logits(block).exp_() if kept is None else kept
        slope = memory[: len(powers)]
        torch.add(by_row[block, None], by_column, out=slope)
        yield block, slope.mul_(powers)


class _SoftplusSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        offset: int,
        tile_bytes: int,
    ):
        blocks = _Blocks(rows, columns, scale, offset, tile_bytes)
        sums, positive = (rows.new_empty(rows.shape[0]) for _ in range(2))
        is_safe = _is_safe(rows, columns, scale, bias)
        kept: list[Tensor] = []
        for block in blocks:
            logits = blocks.logits(block).add_(bias)
            positive[block] = blocks.positives(block, logits)
            if blocks.num_blocks == 1:
                # A single block is small enough to be kept.
                kept, logits = [logits], logits.clone()
            sums[block] = (logits.exp_().log1p_() if is_safe else F.softplus(logits)).sum(1)
        ctx.save_for_backward(rows, columns, scale, bias, *kept)
        ctx.place = offset, tile_bytes
        return sums, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, columns, scale, bias, *kept = ctx.saved_tensors
        by_row, by_positive = grads
        by_bias = by_positive.sum().view_as(bias)
        blocks = _Blocks(rows, columns, scale, *ctx.place)

        def slopes() -> Iterator[tuple[slice, Tensor]]:
            for block in blocks:
                logits = kept[0].clone() if kept else blocks.logits(block).add_(bias)
                slope = logits.sigmoid_().mul_(by_row[block, None])
                by_bias.add_(slope.sum())
                yield block, slope

        return *blocks.gradients(slopes(), by_positive), by_bias, None, None


def _is_safe(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor | None = None) -> bool:
    """Tells whether no logit exceeds `SAFE_LOGIT` in size, by the Cauchy-Schwarz inequality."""
    if rows.is_cuda or not len(rows) or not len(columns):
        # Elsewhere exponentials are cheap, and asking would make the host wait.
        return False
    longest = rows.square().sum(1).amax() * columns.square().sum(1).amax()
    shift = 0.0 if bias is None else float(bias.abs())
    return float(scale.abs() * longest.sqrt()) + shift <= SAFE_LOGIT
