"""Means of all columns under both softmaxes of every pair: what gradients of InfoNCE are made of.

In: this rank's rows x and columns y, and their normalisers r_i = log sum_j exp(x_i.y_j) and c_j =
log sum_i exp(x_i.y_j). Out: p_i = sum_j exp(x_i.y_j - r_i) y_j and q_i = sum_j exp(x_i.y_j - c_j)
y_j, of which the first is a mean of columns, and the second what a row has a part in. Weights are
made tile by tile, and again in the backward pass: memory is O((b + n) d) and a tile.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pairing import Pairing
from .tiling import Gradients, Tiling, open_columns


def softmax_means(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "b d"],
    row_sums: Float[Tensor, "b"],
    column_sums: Float[Tensor, "b"],
    pairing: Pairing,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
    """Returns p and q of this rank's rows over the columns of all ranks, with all gradients.

    Args:
        rows: x, scaled, float32 or float64.
        columns: y: column i is row i's own.
        row_sums: r, log sum exp of a row's logits.
        column_sums: c, the same of this rank's own columns over all rows.
        pairing: the exchange and the size of tiles; all pairs count.

    Raises:
        ValueError: the exchange has no such form.
    """
    pairing.require_plain("gradient matching")
    with torch.autocast(rows.device.type, enabled=False):
        # The normalisers travel with their columns, and their gradients with those of the columns.
        joined = torch.cat([columns, column_sums[:, None]], 1)
        return _SoftmaxMeans.apply(rows, joined, row_sums, pairing)  # type: ignore[return-value]


class _SoftmaxMeans(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, row_sums: Tensor, pairing: Pairing):
        # Against [x, 0] the last number of a column, its normaliser, does not count.
        wide = torch.cat([rows, rows.new_zeros(len(rows), 1)], 1)
        joined = open_columns(columns, pairing)
        tiling = Tiling(wide, wide.new_ones(1), None, pairing, joined)
        add_product = tiling.ops.add_product
        by_rows, by_columns = torch.zeros_like(rows), torch.zeros_like(rows)
        for tile in tiling.tiles():
            values, sums = tile.values[:, :-1], tile.values[:, -1]
            logits = tile.compute()
            weights = torch.sub(
                logits, row_sums[tile.rows, None], out=tile.buffer("weights")
            ).exp_()
            add_product(weights, values, by_rows[tile.rows])
            add_product(logits.sub_(sums).exp_(), values, by_columns[tile.rows])
        ctx.save_for_backward(wide, row_sums)
        ctx.joined, ctx.pairing = joined, pairing
        return by_rows, by_columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        wide, row_sums = ctx.saved_tensors
        by_p, by_q = (grad.contiguous() for grad in grads)
        tiling = Tiling(wide, wide.new_ones(1), None, ctx.pairing, ctx.joined)
        gradients, ops = Gradients(tiling), tiling.ops
        by_row_sums = torch.zeros_like(row_sums)
        for tile in tiling.tiles_backward(gradients):
            values, sums = tile.values[:, :-1], tile.values[:, -1]
            by_values = gradients.by_columns[: len(values)]
            logits, grad = tile.compute(), tile.buffer("grad")
            weights = torch.sub(
                logits, row_sums[tile.rows, None], out=tile.buffer("weights")
            ).exp_()
            ops.add_product(weights.T, by_p[tile.rows], by_values[:, :-1])
            weights.mul_(ops.product(by_p[tile.rows], values.T, grad))
            by_row_sums[tile.rows] -= weights.sum(1)
            logits.sub_(sums).exp_()
            ops.add_product(logits.T, by_q[tile.rows], by_values[:, :-1])
            logits.mul_(ops.product(by_q[tile.rows], values.T, grad))
            by_values[:, -1] -= logits.sum(0)
            weights.add_(logits)
            ops.add_product(weights, values, gradients.by_rows[tile.rows, :-1])
            ops.add_product(weights.T, wide[tile.rows, :-1], by_values[:, :-1])
        return gradients.by_rows[:, :-1], ctx.joined.gradient(), by_row_sums, None
