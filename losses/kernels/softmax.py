"""The two kernels over all pairs: sums of exponentials (softmax) and of softplus (sigmoid).

In: rows [b, d] and this rank's columns [m, d]. Out: vectors. A tile of logits is made, reduced and
thrown away, and made again in the backward pass: memory is O((b + n) d) and a tile, with n columns
on all ranks. Every gradient is exact. `pairs` is how terms call them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import tile_ops as inner
from .pairing import Pairing
from .tiling import Gradients, Sweep, Tile, _is_all, _is_safe, open_columns


class SoftmaxKernel(torch.autograd.Function):
    """Returns log sum exp over columns [b] and over rows [m], and the targets' logits [b], [m].

    `paired`: row i's own column is this rank's column i, and both directions are wanted; else only
    the first result means anything.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing, paired: bool
    ):
        joined = open_columns(columns, pairing)
        sweep = Sweep(rows, scale, None, pairing, joined)
        is_safe = _is_safe(rows, joined, scale, pairing)
        over_columns = rows.new_full((len(rows),), 0.0 if is_safe else -torch.inf)
        over_rows = rows.new_full((joined.total,), 0.0 if is_safe else -torch.inf)
        positive, row_target = (rows.new_zeros(len(rows)) for _ in range(2))
        column_target = rows.new_zeros(joined.total)
        kept: list[Tensor] = []
        for tile in sweep.forth():
            logits = tile.compute()
            if paired:
                positive[tile.own] = tile.diagonal(logits)
                for by_rows, by_columns in tile.targets():
                    row_target[tile.rows] += (by_rows * logits).sum(1)
                    column_target[tile.columns] += (by_columns * logits).sum(0)
            tile.leave_out(keeps_own=paired)
            if is_safe:
                powers = logits.exp_()
                over_columns[tile.rows] += powers.sum(1)
                if paired:
                    over_rows[tile.columns] += powers.sum(0)
                kept = [powers] if _is_all(tile, sweep) else []
            else:
                by_row, by_column = inner.of(rows.device).log_sum_exps(logits)
                over_columns[tile.rows] = torch.logaddexp(over_columns[tile.rows], by_row)
                over_rows[tile.columns] = torch.logaddexp(over_rows[tile.columns], by_column)
        if is_safe:
            over_columns.log_()
            over_rows.log_()
        own = positive * pairing.diagonal
        if paired:
            over_rows = joined.log_sum_exp(over_rows)
            if pairing.targets:
                column_target = joined.sum(column_target)
        ctx.save_for_backward(rows, scale, over_columns, over_rows, *kept)
        ctx.joined, ctx.pairing, ctx.paired, ctx.is_safe = joined, pairing, paired, is_safe
        return (
            over_columns,
            joined.own(over_rows).clone(),
            row_target + own,
            joined.own(column_target) + own if paired else column_target,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, scale, over_columns, over_rows, *kept = ctx.saved_tensors
        joined, pairing, paired = ctx.joined, ctx.pairing, ctx.paired
        by_row, by_column, by_row_target, by_column_target = grads
        by_positive = (by_row_target + by_column_target) * pairing.diagonal if paired else None
        if paired:
            by_column = joined.everyones(by_column)
            if pairing.targets:
                by_column_target = joined.everyones(by_column_target)
        # Where nothing counts, exponentials are zero: any finite shift will do.
        over_columns = over_columns.masked_fill(over_columns == -torch.inf, 0.0)
        over_rows = over_rows.masked_fill(over_rows == -torch.inf, 0.0)
        slopes = _SafeSlopes if ctx.is_safe else _Slopes
        if not paired:
            by_column = over_rows.new_zeros(joined.total)
        slope_of = slopes(over_columns, over_rows, by_row, by_column)
        sweep = Sweep(rows, scale, None, pairing, joined)
        gradients = Gradients(sweep)
        for tile in sweep.back(gradients):
            if not kept:
                tile.compute()
                tile.leave_out(keeps_own=paired)
            slope = slope_of(tile, kept[0] if kept else None)
            if by_positive is not None:
                for by_rows, by_columns in tile.targets():
                    slope.add_(by_rows * by_row_target[tile.rows, None])
                    slope.add_(by_columns * by_column_target[tile.columns])
                tile.diagonal(slope).add_(by_positive[tile.own])
            gradients.add(tile, slope)
        return *gradients.all()[:3], None, None


class _Slopes:
    """g_i exp(l_ij - row_i) + h_j exp(l_ij - column_j), for logits of any size."""

    def __init__(self, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor):
        self.over_columns, self.over_rows = over_columns, over_rows
        self.by_row, self.by_column = by_row, by_column

    def __call__(self, tile: Tile, kept: None) -> Tensor:
        shifts = self.over_columns[tile.rows], self.over_rows[tile.columns]
        factors = self.by_row[tile.rows], self.by_column[tile.columns]
        form = inner.of(tile.logits.device)
        return form.slopes(tile.logits, *shifts, *factors, out=tile.memory(2))


class _SafeSlopes:
    """The same with one exponential: exp(l_ij) (g_i exp(-row_i) + h_j exp(-column_j))."""

    def __init__(self, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor):
        self.by_row = by_row * (-over_columns).exp()
        self.by_column = by_column * (-over_rows).exp()

    def __call__(self, tile: Tile, kept: Tensor | None) -> Tensor:
        powers = tile.logits.exp_() if kept is None else kept
        slope = tile.memory(2)
        torch.add(self.by_row[tile.rows, None], self.by_column[tile.columns], out=slope)
        return slope.mul_(powers)
