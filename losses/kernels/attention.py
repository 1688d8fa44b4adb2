"""Retrieval from a store that is the global batch: softmax attention of states over all columns.

In: this rank's states and its part of the store. Out: for each state the mean of the whole store,
weighted by similarity: softmax(beta x S^T) S, one update of a modern Hopfield network (Ramsauer et
al., "Hopfield Networks is All You Need", 2020). The store comes tile by tile and once only: the
running mean is put right when a larger weight turns up. Weights are made again in the backward
pass, so that memory is O((b + n) d) and a tile, with n columns on all ranks.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .pairing import Pairing
from .tiling import Gradients, Tiling, open_columns


def retrieve(
    states: Float[Tensor, "a d"],
    store: Float[Tensor, "m d"],
    beta: Float[Tensor, "1"],
    pairing: Pairing,
) -> Float[Tensor, "a d"]:
    """Returns softmax(beta x S^T) S for each state x of this rank; S is the store of all ranks.

    Args:
        states: of this rank, any number, float32 or float64.
        store: this rank's part of S.
        beta: inverse temperature of the retrieval, the same on all ranks.
        pairing: the exchange and the size of tiles; every state sees the whole store.

    Raises:
        ValueError: the exchange has no such form.
    """
    pairing.require_plain("retrieval")
    with torch.autocast(states.device.type, enabled=False):
        return _Retrieval.apply(states, store, beta, pairing)  # type: ignore[return-value]


class _Retrieval(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, store: Tensor, beta: Tensor, pairing: Pairing) -> Tensor:
        joined = open_columns(store, pairing)
        tiling = Tiling(states, beta, None, pairing, joined)
        retrieved = torch.zeros_like(states)
        normaliser = states.new_full((len(states),), -torch.inf)
        for tile in tiling.tiles():
            logits, before = tile.compute(), normaliser[tile.rows]
            after = torch.logaddexp(before, logits.logsumexp(1))
            retrieved[tile.rows] *= (before - after).exp_()[:, None]
            weights = logits.sub_(after[:, None]).exp_()
            tiling.ops.add_product(weights, tile.values, retrieved[tile.rows])
            normaliser[tile.rows] = after
        ctx.save_for_backward(states, beta, retrieved, normaliser)
        ctx.joined, ctx.pairing = joined, pairing
        return retrieved

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        states, beta, retrieved, normaliser = ctx.saved_tensors
        by_retrieved = grads[0].contiguous()
        # Of a softmax: dL/dl_ij = w_ij (g_i.s_j - g_i.r_i), r_i the mean of s_j under w_i.
        mean_grad = (by_retrieved * retrieved).sum(1, keepdim=True)
        tiling = Tiling(states, beta, None, ctx.pairing, ctx.joined)
        gradients, ops = Gradients(tiling), tiling.ops
        for tile in tiling.tiles_backward(gradients):
            weights = tile.compute().sub_(normaliser[tile.rows, None]).exp_()
            by_weighted = by_retrieved[tile.rows]
            grad = ops.product(by_weighted, tile.values.T, tile.buffer("grad"))
            grad.sub_(mean_grad[tile.rows]).mul_(weights)
            ops.add_product(grad, tile.values, gradients.by_rows[tile.rows])
            by_store = gradients.by_columns[: len(tile.values)]
            ops.add_product(grad.T, tiling.scaled_rows[tile.rows], by_store)
            ops.add_product(weights.T, by_weighted, by_store)
        by_states = gradients.by_rows
        by_beta = (by_states * states).sum().view_as(beta)
        return by_states * beta, ctx.joined.gradient(), by_beta, None
