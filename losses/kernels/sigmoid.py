"""The sigmoid kernel: sums of softplus over all pairs, recomputed in the backward pass.

In: rows, columns, scale and bias. Out: the sum of this rank's pairs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .pairing import Pairing
from .tiling import Gradients, Sweep, _is_all, _is_safe, open_columns


class SoftplusKernel(torch.autograd.Function):
    """Returns sum_j w_ij log(1 + exp(l_ij)) of each row [b], and the targets' logits [b].

    `paired`: row i's own column is this rank's column i; else the second result means nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        pairing: Pairing,
        paired: bool,
    ):
        joined = open_columns(columns, pairing)
        sweep = Sweep(rows, scale, bias, pairing, joined)
        is_safe = _is_safe(rows, joined, scale, pairing, bias)
        sums, target = (rows.new_zeros(len(rows)) for _ in range(2))
        kept: list[Tensor] = []
        for tile in sweep.forth():
            logits = tile.compute()
            if paired:
                target[tile.own] += tile.diagonal(logits) * pairing.diagonal
                for by_rows, _ in tile.targets():
                    target[tile.rows] += (by_rows * logits).sum(1)
            tile.leave_out(keeps_own=paired)
            if _is_all(tile, sweep):
                kept, logits = [logits], logits.clone()
            softplus = logits.exp_().log1p_() if is_safe else F.softplus(logits, threshold=40)
            sums[tile.rows] += softplus.sum(1)
        ctx.save_for_backward(rows, scale, bias, *kept)
        ctx.joined, ctx.pairing, ctx.paired = joined, pairing, paired
        return sums, target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, scale, bias, *kept = ctx.saved_tensors
        by_row, by_target = grads
        sweep = Sweep(rows, scale, bias, ctx.pairing, ctx.joined)
        gradients = Gradients(sweep)
        for tile in sweep.back(gradients):
            if not kept:
                tile.compute()
                tile.leave_out(keeps_own=ctx.paired)
            slope = kept[0].clone() if kept else tile.logits
            slope.sigmoid_().mul_(by_row[tile.rows, None])
            if ctx.paired:
                for by_rows, _ in tile.targets():
                    slope.add_(by_rows * by_target[tile.rows, None])
                own = by_target[tile.own] * ctx.pairing.diagonal
                tile.diagonal(slope).add_(own)
            gradients.add(tile, slope)
        return *gradients.all(), None, None
