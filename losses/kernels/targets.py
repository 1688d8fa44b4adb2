"""Targets that are themselves made of all pairs: a teacher's softmax or sigmoid of them.

In: a second pair of features for every sample, and their scale. Out: a `Target`, made again tile by
tile from the features, for a softmax with two normalisers a sample, so that no matrix of targets
exists.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed.exchange import Exchange
from .pairing import Operands, Pairing
from .reductions import softmax_sums
from .tile_ops import multiply


class Soft:
    """q_j|i = softmax_j(s t_i.r_j) for rows, and q_i|j = softmax_i of the same for columns.

    Several, each with its share in `Pairing.targets`, are an average after the softmax.

    Args:
        rows: t [b, k] of this rank's pairs; of any width.
        columns: r [b, k].
        scale: s, apart from that of the logits: a temperature for each side.
        pairing: whose target it becomes; it lends the exchange and the size of tiles.
    """

    def __init__(
        self,
        rows: Float[Tensor, "b k"],
        columns: Float[Tensor, "b k"],
        scale: Float[Tensor, "1"],
        pairing: Pairing,
    ):
        with torch.no_grad():
            plain = Pairing(pairing.exchange, tile_bytes=pairing.tile_bytes)
            sums = softmax_sums(rows, columns, scale, plain)
            self.rows = (rows * scale, sums.rows)
            self.columns = (columns.detach(), sums.columns)

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        logits = multiply(rows[0], columns[0].T)
        by_rows = (logits - rows[1][:, None]).exp_()
        return by_rows, logits.sub_(columns[1]).exp_()


class SoftMatch:
    """sigmoid(s t_i.r_j + c): how far a pair matches, for the sigmoid's kernel.

    Args:
        rows: t [b, k] of this rank's pairs; of any width.
        columns: r [b, k].
        scale, bias: s and c.
    """

    def __init__(
        self,
        rows: Float[Tensor, "b k"],
        columns: Float[Tensor, "b k"],
        scale: Float[Tensor, "1"],
        bias: Float[Tensor, "1"],
    ):
        # The bias is a product of its own: [s t, c].[r, 1].
        rows, columns, one = rows.detach(), columns.detach(), rows.new_ones(len(rows), 1)
        self.rows = (torch.cat([rows * scale.detach(), one * bias.detach()], 1),)
        self.columns = (torch.cat([columns, one], 1),)

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        match = multiply(rows[0], columns[0].T).sigmoid_()
        return match, match


class Uniform:
    """The same on every column: label smoothing."""

    rows: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        share = torch.tensor(1.0 / total, dtype=torch.float64)
        return share, share


class SameId:
    """The same on every column that has the row's id: several captions of one image, classes.

    Args:
        ids: [b] of this rank's pairs.
        exchange: that of the pairing.
    """

    def __init__(self, ids: Tensor, exchange: Exchange):
        count = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
        for _, (columns,) in exchange.open(ids).blocks():
            # Not `unique`, whose result has a size that the host would wait for.
            columns = columns.sort().values
            first, last = (torch.searchsorted(columns, ids, right=end) for end in (False, True))
            count += last - first
        self.rows = self.columns = (ids, 1.0 / count)

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        same = rows[0][:, None] == columns[0]
        return same * rows[1][:, None], same * columns[1]
