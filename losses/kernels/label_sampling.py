"""Labels drawn from the model's own softmax: the one ingredient of a Gauss-Newton estimate.

In: rows, columns and the scale of a softmax over all pairs. Out: for every row the column that was
drawn with the probability which the softmax gives it. A draw depends on the seed and on the keys of
the two samples alone: the same for any number of ranks and of tiles.

With labels of its own for every softmax, the gradient of a mean over n cross-entropies has mean
zero, and n times its square has the diagonal of the loss's Gauss-Newton matrix as its mean (Liu et
al., "Sophia" (2023), section 2.3; Martens (2020), section 5, for the equality with the Fisher).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .keyed_random import finalised, mix, shifted
from .pairing import TILE_BYTES, Operands, Pairing
from .tile_ops import multiply


@torch.no_grad()
def sample_labels(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "m d"],
    scale: Float[Tensor, "1"],
    keys: tuple[Int[Tensor, "b"], Int[Tensor, "m"]],
    seed: int,
    pairing: Pairing,
) -> Int[Tensor, "b"]:
    """Draws one column for each row from softmax_j(s u_i.v_j) (Gumbel's trick, tile by tile).

    Args:
        rows: u of this rank.
        columns: v of this rank.
        scale: s.
        keys: of the rows' and of the columns' samples.
        seed: of the draw, below 2^63.
        pairing: exchange, pointwise map and size of tiles.

    Returns:
        Numbers of columns, as the exchange numbers them.
    """
    best = rows.new_full((len(rows),), -torch.inf)
    chosen = torch.zeros_like(keys[0])
    for where, (block, block_keys) in pairing.exchange.open(columns.detach(), keys[1]).blocks():
        if not len(block):
            continue
        step = max(1, (pairing.tile_bytes or TILE_BYTES) // (8 * len(block)))
        for first in range(0, len(rows), step):
            part = slice(first, first + step)
            # The probabilities drawn from are those of the kernels, which leave autocast, too.
            with torch.autocast(rows.device.type, enabled=False):
                logits = multiply(rows[part], block.T)
            if pairing.point is not None:
                logits = pairing.point.value(logits)
            noisy, number = (logits * scale + gumbel(keys[0][part], block_keys, seed)).max(1)
            better = noisy > best[part]
            chosen[part] = torch.where(better, number + where.start, chosen[part])
            best[part] = torch.where(better, noisy, best[part])
    return chosen


class SampledLabels:
    """A target on the columns that rows drew, and on the rows that columns drew.

    Args:
        by_rows: number of the column that each of this rank's rows drew.
        by_columns: number of the row that each of its columns drew.
        first: number of this rank's first row and column.
    """

    def __init__(self, by_rows: Int[Tensor, "b"], by_columns: Int[Tensor, "b"], first: int):
        own = torch.arange(first, first + len(by_rows), device=by_rows.device)
        self.rows, self.columns = (by_rows, own), (by_columns, own)

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        """One where drawn."""
        return rows[0][:, None] == columns[1], rows[1][:, None] == columns[0]


def gumbel(rows: Int[Tensor, "b"], columns: Int[Tensor, "m"], seed: int) -> Float[Tensor, "b m"]:
    """Gumbel-distributed numbers, a function of the seed and of both keys."""
    row = finalised(rows ^ mix(torch.full_like(rows, seed)))
    bits = finalised(row[:, None] + mix(columns)[None])
    # One bit less than a double has: the last interval's middle would round to 1.
    uniform = shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)
    return -(-uniform.log()).log()
