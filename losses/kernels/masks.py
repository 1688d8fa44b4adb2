"""Masks of pairs: which columns count for a row.

In: keys, ids or teachers' features of rows and columns. Out: booleans a tile at a time.
"""

from torch import Tensor

from .pairing import Operands
from .tile_ops import multiply


class Different:
    """Keeps the pairs whose ids differ (bool): samples with the same caption are no negatives."""

    def __init__(self, row_ids: Tensor, column_ids: Tensor):
        self.rows, self.columns = (row_ids,), (column_ids,)

    def tile(self, rows: Operands, columns: Operands) -> Tensor:
        return rows[0][:, None] != columns[0]


class Valid:
    """Keeps the pairs of which both sides are present (bool): optional texts, ragged negatives."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = (rows,), (columns,)

    def tile(self, rows: Operands, columns: Operands) -> Tensor:
        return rows[0][:, None] & columns[0]


class Below:
    """Keeps the pairs that a second similarity puts below a limit (bool): semantic duplicates."""

    def __init__(self, rows: Tensor, columns: Tensor, limit: float):
        self.rows, self.columns, self.limit = (rows.detach(),), (columns.detach(),), limit

    def tile(self, rows: Operands, columns: Operands) -> Tensor:
        return multiply(rows[0], columns[0].T) < self.limit


class Distance:
    """1 - cosine of a second pair of normalised features: far pairs count in full."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = (rows.detach(),), (columns.detach(),)

    def tile(self, rows: Operands, columns: Operands) -> Tensor:
        return multiply(rows[0], columns[0].T).neg_().add_(1.0)
