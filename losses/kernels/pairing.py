"""How the pairs of an objective are compared: the parts that the kernels of `tiles` are given.

A `Relation` says something about every pair of a row and a column, tile by tile, from tensors that
travel with them: which pairs count, a factor of their logits, a target distribution. Relations
carry no gradient.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..distributed.exchange import AllGather, Exchange

# Of one block of logits: large enough for matrix products to run at full speed, small against the
# features of a batch that needs blocks.
TILE_BYTES = 32 << 20


class Pointwise(Protocol):
    """A function of the inner product, and its derivative (squared distances need none)."""

    def value(self, inner: Tensor) -> Tensor:
        """Returns the similarity, in new memory."""
        ...

    def slope(self, inner: Tensor, value: Tensor) -> Tensor:
        """Returns the derivative at `inner`, where the function is `value`; new memory."""
        ...


class Relation(Protocol):
    """Something about every pair; `rows` and `columns` are this rank's tensors that tell it."""

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    def tile(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        """Returns [r, c] of r rows and c columns, in new memory."""
        ...


class Target(Protocol):
    """A distribution over the columns of every row, and over the rows of every column."""

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]

    def tile(
        self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], total: int
    ) -> tuple[Tensor, Tensor]:
        """Returns q_j|i and q_i|j of r rows and c columns out of `total`: [r, c] or []."""
        ...


@dataclass(frozen=True)
class Pairing:
    """Which pairs count, and how.

    Attributes:
        exchange: how columns reach a rank.
        point: what makes logits of inner products, before the scale; None: nothing.
        pairs: `others` leaves out each row's own column (leave one out).
        weights: a pair's exponential is multiplied by each (bool: kept or not). A row's own column
            is always kept as it is.
        factor: multiplies the logits (before the bias).
        diagonal: the part of a target that is on a row's own column; the rest is on `targets`.
        targets: further parts with their share.
        tile_bytes: memory of one block of logits; two or three such blocks exist at a time.
    """

    exchange: Exchange = field(default_factory=AllGather)
    point: Pointwise | None = None
    pairs: Literal["all", "others"] = "all"
    weights: tuple[Relation, ...] = ()
    factor: Relation | None = None
    diagonal: float = 1.0
    targets: tuple[tuple[float, Target], ...] = ()
    tile_bytes: int = TILE_BYTES

    @property
    def relations(self) -> list[Relation | Target]:
        """All of them, in a fixed order."""
        factor = [] if self.factor is None else [self.factor]
        return [*self.weights, *factor, *(target for _, target in self.targets)]


class Different:
    """Keeps the pairs whose ids differ (bool): samples with the same caption are no negatives."""

    def __init__(self, row_ids: Tensor, column_ids: Tensor):
        self.rows, self.columns = (row_ids,), (column_ids,)

    def tile(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        return rows[0][:, None] != columns[0]


class Valid:
    """Keeps the pairs of which both sides are there (bool): optional texts, ragged negatives."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = (rows,), (columns,)

    def tile(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        return rows[0][:, None] & columns[0]


class Below:
    """Keeps the pairs that a second similarity puts below a limit (bool): semantic duplicates."""

    def __init__(self, rows: Tensor, columns: Tensor, limit: float):
        self.rows, self.columns, self.limit = (rows.detach(),), (columns.detach(),), limit

    def tile(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        return rows[0] @ columns[0].T < self.limit


class Distance:
    """1 - cosine of a second pair of normalised features: far pairs count in full."""

    def __init__(self, rows: Tensor, columns: Tensor):
        self.rows, self.columns = (rows.detach(),), (columns.detach(),)

    def tile(self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        return (rows[0] @ columns[0].T).neg_().add_(1.0)


class Uniform:
    """The same on every column: label smoothing."""

    rows: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()

    def tile(
        self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], total: int
    ) -> tuple[Tensor, Tensor]:
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
        for _, (columns,) in exchange.open(ids).visit():
            everyones, number = columns.unique(return_counts=True)
            if len(everyones):
                place = torch.searchsorted(everyones, ids).clamp_(max=len(everyones) - 1)
                count += torch.where(everyones[place] == ids, number[place], 0)
        self.rows = self.columns = (ids, 1.0 / count)

    def tile(
        self, rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], total: int
    ) -> tuple[Tensor, Tensor]:
        same = rows[0][:, None] == columns[0]
        return same * rows[1][:, None], same * columns[1]
