"""List-wise agreement of two similarities (ListMLE): does one order the columns as the other does?

In: two pairs of rows and columns, that is two full rows of logits a sample. Out: for each row the
negative log likelihood, under the first, of the order in which the second puts the columns
(Plackett-Luce; Xia et al., "Listwise Approach to Learning to Rank", 2008), and the reverse.

A row has to be there as a whole to be sorted: all ranks' columns are joined (with `Ring` too), and
rows are worked on in blocks that are made again in the backward pass. Memory is O((b + n) d), and
some blocks of `tile_bytes` while one is worked on.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..distributed.columns import join
from .pairing import TILE_BYTES, Pairing
from .tile_ops import multiply


class Side(NamedTuple):
    """What one similarity compares: this rank's rows with the columns of all ranks."""

    rows: Float[Tensor, "b d"]
    columns: Float[Tensor, "b d"]


def listwise_losses(
    first: Side, second: Side, scale: Float[Tensor, "1"], pairing: Pairing
) -> Float[Tensor, "b"]:
    """Returns for each row the losses of both orders, each the mean over the n columns.

    With l = s x.y of one similarity and the columns sorted by the other's, largest first, equal
    ones by their number in the global batch: 1/n sum_k [ log sum_{m >= k} exp l_m - l_k ]. The
    order has no gradient.

    Args:
        first, second: rows and columns, float32 or float64.
        scale: s, the same on all ranks.
        pairing: the exchange and the size of tiles.

    Raises:
        ValueError: the exchange has no such form.
    """
    pairing.require_plain("list-wise losses")
    rows = first.rows
    with torch.autocast(rows.device.type, enabled=False):
        widths = [first.columns.shape[1], second.columns.shape[1]]
        both = torch.cat([first.columns, second.columns], 1)
        all_columns = join(both, pairing.exchange.open(both.detach())).split(widths, 1)
        row_bytes = max(1, len(all_columns[0]) * rows.element_size())
        num_rows = max(1, (pairing.tile_bytes or TILE_BYTES) // row_bytes)
        # A rank without rows has one empty block, so that it takes part in the backward pass.
        blocks = zip(first.rows.split(num_rows), second.rows.split(num_rows), strict=True)
        losses = [
            checkpoint(
                _block, block, all_columns, scale, use_reentrant=False, preserve_rng_state=False
            )
            for block in blocks
        ]
    return torch.cat(losses)  # type: ignore[arg-type]


def _block(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor], scale: Tensor) -> Tensor:
    one, other = (multiply(x, y.T) * scale for x, y in zip(rows, columns, strict=True))
    return _list_mle(one, other.detach()) + _list_mle(other, one.detach())


def _list_mle(predicted: Float[Tensor, "r n"], truth: Float[Tensor, "r n"]) -> Float[Tensor, "r"]:
    order = truth.argsort(dim=1, descending=True, stable=True)
    # Smallest first: what remains to be ranked is then a prefix.
    ascending = predicted.gather(1, order.flip(1))
    return (ascending.logcumsumexp(1) - ascending).sum(1) / max(1, predicted.shape[1])
