"""What terms call: reductions over all pairs of this rank's rows and all ranks' columns.

In: this rank's rows and columns. Out: one number a row and one a column of this rank; collectives
and tiles are inside. Losses are put together from them: `Sums.cross_entropy`, or that of a row
alone, `rows - row_targets`; further columns, or a positive from elsewhere, are joined by
`logaddexp`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed.exchange import AllGather, NoGradGather
from .pairing import Pairing
from .sigmoid import SoftplusKernel
from .softmax import RowSoftmaxKernel, SoftmaxKernel

ALL_PAIRS = Pairing()


class Sums(NamedTuple):
    """Of every row and of every column of this rank.

    Attributes:
        rows: log sum exp of a row's logits over all columns.
        columns: log sum exp of a column's logits over all rows.
        row_targets: mean logit of a row under its target; by default that of its own column.
        column_targets: the same of a column.
    """

    rows: Float[Tensor, "b"]
    columns: Float[Tensor, "b"]
    row_targets: Float[Tensor, "b"]
    column_targets: Float[Tensor, "b"]

    def cross_entropy(self) -> Float[Tensor, "b"]:
        """Returns the mean of both directions' cross-entropies of each pair."""
        return (self.rows - self.row_targets + self.columns - self.column_targets) / 2


def softmax_sums(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "b d"],
    scale: Float[Tensor, "1"],
    pairing: Pairing = ALL_PAIRS,
) -> Sums:
    """Both directions of a softmax over all pairs, in one pass; l_ij = s u_i.v_j.

    Args:
        rows: u of this rank, float32 or float64.
        columns: v of this rank: column i is row i's own.
        scale: s, the same on all ranks.
        pairing: which pairs count, and how.

    Raises:
        ValueError: the exchange has no such form.
    """
    assert len(rows) == len(columns), (rows.shape, columns.shape)
    with torch.autocast(rows.device.type, enabled=False):
        if isinstance(pairing.exchange, NoGradGather):
            return _no_grad_gather(rows, columns, scale, pairing)
        return Sums(*SoftmaxKernel.apply(rows, columns, scale, pairing))


def row_sums(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "m d"],
    scale: Float[Tensor, "1"],
    pairing: Pairing = ALL_PAIRS,
) -> Float[Tensor, "b"]:
    """log sum exp of each row's logits over all columns, of which ranks may have any number.

    With `pairs="others"` each rank has as many columns as rows, and row i is not compared with
    column i. -inf where no pair counts.

    Raises:
        ValueError: the exchange has no such form.
    """
    assert pairing.pairs == "all" or len(rows) == len(columns), (rows.shape, columns.shape)
    pairing.refuse_no_grad_gather("one-sided sums and further columns")
    with torch.autocast(rows.device.type, enabled=False):
        return RowSoftmaxKernel.apply(rows, columns, scale, pairing)  # type: ignore[return-value]


def softplus_sums(
    rows: Float[Tensor, "b d"],
    columns: Float[Tensor, "b d"],
    scale: Float[Tensor, "1"],
    bias: Float[Tensor, "1"],
    pairing: Pairing = ALL_PAIRS,
) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """Returns sum_j log(1 + exp(l_ij)) of each row and the row's targets; l_ij = s u_i.v_j + c.

    Args:
        rows: u of this rank, float32 or float64.
        columns: v of this rank: column i is row i's own.
        scale: s, the same on all ranks.
        bias: c.
        pairing: which pairs count, and how. Targets need not add up to one here: they are the
            pairs that match.

    Raises:
        ValueError: the exchange has no such form.
    """
    assert len(rows) == len(columns), (rows.shape, columns.shape)
    pairing.refuse_no_grad_gather("a sigmoid")
    with torch.autocast(rows.device.type, enabled=False):
        return SoftplusKernel.apply(rows, columns, scale, bias, pairing)


def _no_grad_gather(rows: Tensor, columns: Tensor, scale: Tensor, pairing: Pairing) -> Sums:
    """Two passes, in each of which the gathered side has no gradient."""
    if pairing.relations:
        pairing.refuse_no_grad_gather("masks, factors and soft targets")
    exact = Pairing(AllGather(), pairing.point, pairing.pairs, tile_bytes=pairing.tile_bytes)
    by_rows = Sums(*SoftmaxKernel.apply(rows, columns.detach(), scale, exact))
    by_columns = Sums(*SoftmaxKernel.apply(columns, rows.detach(), scale, exact))
    return Sums(by_rows.rows, by_columns.rows, by_rows.row_targets, by_columns.row_targets)
