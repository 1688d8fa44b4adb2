"""The softmax kernels over all pairs: sums of exponentials, recomputed in the backward pass.

In: rows [b, d] and this rank's columns [m, d]. Out: vectors. A tile of logits is made, reduced and
thrown away, and made again in the backward pass: memory is O((b + n) d) and a tile, with n columns
on all ranks. Every gradient is exact. Terms call them through `reductions`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pairing import Pairing
from .tiling import Gradients, Tile, Tiling, has_safe_logits, is_all_pairs, open_columns


class SoftmaxKernel(torch.autograd.Function):
    """Log sum exp over columns [b] and over rows [b], and their mean logits under the targets.

    Row i's own column is this rank's column i.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing):
        joined = open_columns(columns, pairing)
        tiling = Tiling(rows, scale, None, pairing, joined)
        sums = _Sums(tiling)
        positive, row_target = (rows.new_zeros(len(rows)) for _ in range(2))
        column_target = rows.new_zeros(joined.total)
        for tile in tiling.tiles():
            logits = tile.compute()
            positive[tile.own] = tile.diagonal(logits)
            for by_rows, by_columns in tile.targets():
                row_target[tile.rows] += (by_rows * logits).sum(1)
                column_target[tile.columns] += (by_columns * logits).sum(0)
            tile.mask_others()
            sums.add(tile)
        over_columns, over_rows = sums.logs()
        over_rows = joined.log_sum_exp(over_rows)
        if pairing.targets:
            column_target = joined.sum(column_target)
        ctx.save_for_backward(rows, scale, over_columns, over_rows, *sums.powers)
        ctx.joined, ctx.pairing, ctx.is_safe = joined, pairing, sums.is_safe
        own_target = positive * pairing.diagonal
        return (
            over_columns,
            joined.own(over_rows).clone(),
            row_target + own_target,
            joined.own(column_target) + own_target,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, scale, over_columns, over_rows, *powers = ctx.saved_tensors
        joined, pairing = ctx.joined, ctx.pairing
        by_row, by_column, by_row_target, by_column_target = grads
        by_positive = (by_row_target + by_column_target) * pairing.diagonal
        by_column = joined.all_gather(by_column)
        if pairing.targets:
            by_column_target = joined.all_gather(by_column_target)
        softmax_grad = _softmax_grad(ctx.is_safe, over_columns, over_rows, by_row, by_column)
        tiling = Tiling(rows, scale, None, pairing, joined)
        gradients = Gradients(tiling)
        for tile in tiling.tiles_backward(gradients):
            if not powers:
                tile.compute()
                tile.mask_others()
            grad = softmax_grad(tile, powers[0] if powers else None)
            for by_rows, by_columns in tile.targets():
                grad.add_(by_rows * by_row_target[tile.rows, None])
                grad.add_(by_columns * by_column_target[tile.columns])
            tile.diagonal(grad).add_(by_positive[tile.own])
            gradients.add(tile, grad)
        return *gradients.all()[:3], None


class RowSoftmaxKernel(torch.autograd.Function):
    """Log sum exp over columns [b] alone; a rank may have any number of columns."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing):
        joined = open_columns(columns, pairing)
        tiling = Tiling(rows, scale, None, pairing, joined)
        sums = _RowSums(tiling)
        for tile in tiling.tiles():
            tile.compute()
            tile.mask()
            sums.add(tile)
        over_columns, over_rows = sums.logs()
        ctx.save_for_backward(rows, scale, over_columns, over_rows, *sums.powers)
        ctx.joined, ctx.pairing, ctx.is_safe = joined, pairing, sums.is_safe
        return over_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, scale, over_columns, over_rows, *powers = ctx.saved_tensors
        (by_row,), by_column = grads, over_rows.new_zeros(ctx.joined.total)
        softmax_grad = _softmax_grad(ctx.is_safe, over_columns, over_rows, by_row, by_column)
        tiling = Tiling(rows, scale, None, ctx.pairing, ctx.joined)
        gradients = Gradients(tiling)
        for tile in tiling.tiles_backward(gradients):
            if not powers:
                tile.compute()
                tile.mask()
            gradients.add(tile, softmax_grad(tile, powers[0] if powers else None))
        return *gradients.all()[:3], None


class _RowSums:
    """Adds up exponentials of logits over tiles.

    Attributes:
        is_safe: whether they are added up as they are; else as logarithms.
        powers: those of the only tile, if there is one; else nothing.
    """

    def __init__(self, tiling: Tiling):
        rows, joined = tiling.rows, tiling.joined
        self.tiling = tiling
        self.is_safe = has_safe_logits(tiling)
        start = 0.0 if self.is_safe else -torch.inf
        self.over_columns = rows.new_full((len(rows),), start)
        self.over_rows = rows.new_full((joined.total,), start)
        self.powers: list[Tensor] = []

    def add(self, tile: Tile) -> None:
        """Adds those of a tile, whose logits are overwritten."""
        if self.is_safe:
            powers = tile.logits.exp_()
            self.over_columns[tile.rows] += powers.sum(1)
            self.powers = [powers] if is_all_pairs(tile) else []
        else:
            by_row, by_column = tile.tiling.ops.log_sum_exps(tile.logits)
            rows, columns = self.over_columns[tile.rows], self.over_rows[tile.columns]
            self.over_columns[tile.rows] = torch.logaddexp(rows, by_row)
            self.over_rows[tile.columns] = torch.logaddexp(columns, by_column)

    def logs(self) -> tuple[Tensor, Tensor]:
        """Returns log sum exp of rows over columns, and of columns over rows."""
        if self.is_safe:
            self.over_columns.log_()
            self.over_rows.log_()
        return self.over_columns, self.over_rows


class _Sums(_RowSums):
    """The same over rows as well, in either case."""

    def add(self, tile: Tile) -> None:
        super().add(tile)
        if self.is_safe:
            powers = tile.logits
            self.over_rows[tile.columns] += powers.sum(0)


def _softmax_grad(
    is_safe: bool, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor
) -> "_SoftmaxGrad | _SafeSoftmaxGrad":
    # Where no pair counts, exponentials are zero: any finite shift will do.
    over_columns = over_columns.masked_fill(over_columns == -torch.inf, 0.0)
    over_rows = over_rows.masked_fill(over_rows == -torch.inf, 0.0)
    kind = _SafeSoftmaxGrad if is_safe else _SoftmaxGrad
    return kind(over_columns, over_rows, by_row, by_column)


class _SoftmaxGrad:
    """g_i exp(l_ij - row_i) + h_j exp(l_ij - column_j), for logits of any size."""

    def __init__(self, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor):
        self.over_columns, self.over_rows = over_columns, over_rows
        self.by_row, self.by_column = by_row, by_column

    def __call__(self, tile: Tile, powers: None) -> Tensor:
        shifts = self.over_columns[tile.rows], self.over_rows[tile.columns]
        factors = self.by_row[tile.rows], self.by_column[tile.columns]
        ops, out = tile.tiling.ops, tile.buffer("grad")
        return ops.softmax_grad(tile.logits, *shifts, *factors, out=out)


class _SafeSoftmaxGrad:
    """The same with one exponential: exp(l_ij) (g_i exp(-row_i) + h_j exp(-column_j))."""

    def __init__(self, over_columns: Tensor, over_rows: Tensor, by_row: Tensor, by_column: Tensor):
        self.by_row = by_row * (-over_columns).exp()
        self.by_column = by_column * (-over_rows).exp()

    def __call__(self, tile: Tile, powers: Tensor | None) -> Tensor:
        if powers is None:
            powers = tile.logits.exp_()
        grad = tile.buffer("grad")
        torch.add(self.by_row[tile.rows, None], self.by_column[tile.columns], out=grad)
        return grad.mul_(powers)
