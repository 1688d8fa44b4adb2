"""The sigmoid kernel over all pairs: sums of softplus, recomputed in the backward pass.

In: rows, columns, scale and bias. Out: the sum of each row, and the mean logit of its target.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .pairing import Pairing
from .tiling import Gradients, Tiling, has_safe_logits, is_all_pairs, open_columns


class SoftplusKernel(torch.autograd.Function):
    """Returns sum_j w_ij log(1 + exp(l_ij)) of each row [b], and the targets' logits [b].

    Row i's own column is this rank's column i.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor, pairing: Pairing
    ):
        tiling = Tiling(rows, scale, bias, pairing, open_columns(columns, pairing))
        is_safe = has_safe_logits(tiling)
        sums, target = (rows.new_zeros(len(rows)) for _ in range(2))
        saved: list[Tensor] = []
        for tile in tiling.tiles():
            logits = tile.compute()
            target[tile.own] += tile.diagonal(logits) * pairing.diagonal
            for by_rows, _ in tile.targets():
                target[tile.rows] += (by_rows * logits).sum(1)
            tile.mask_others()
            if is_all_pairs(tile):
                saved, logits = [logits], logits.clone()
            softplus = logits.exp_().log1p_() if is_safe else F.softplus(logits, threshold=40)
            sums[tile.rows] += softplus.sum(1)
        ctx.save_for_backward(rows, scale, bias, *saved)
        ctx.joined, ctx.pairing = tiling.joined, pairing
        return sums, target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor):
        rows, scale, bias, *saved = ctx.saved_tensors
        by_row, by_target = grads
        tiling = Tiling(rows, scale, bias, ctx.pairing, ctx.joined)
        gradients = Gradients(tiling)
        for tile in tiling.tiles_backward(gradients):
            if not saved:
                tile.compute()
                tile.mask_others()
            grad = saved[0].clone() if saved else tile.logits
            grad.sigmoid_().mul_(by_row[tile.rows, None])
            for by_rows, _ in tile.targets():
                grad.add_(by_rows * by_target[tile.rows, None])
            tile.diagonal(grad).add_(by_target[tile.own] * ctx.pairing.diagonal)
            gradients.add(tile, grad)
        return *gradients.all(), None
