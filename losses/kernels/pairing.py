"""How the pairs of an objective are compared: what the kernels over all pairs are given.

A `Relation` gives a value for every pair of a row and a column, tile by tile, from tensors that
travel with them: which pairs count, a factor of their logits, a target distribution. Relations
carry no gradient.
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..distributed.exchange import AllGather, Exchange, NoGradGather

# Of one block of logits: large enough for matrix products to run at full speed, small against the
# features of a batch that needs blocks. On a GPU a thin block would leave most of it idle.
TILE_BYTES = 32 << 20
CUDA_TILE_BYTES = 256 << 20


# Tensors of rows or of columns, one row of each for each of them.
Operands = tuple[Tensor, ...]


class Pointwise(Protocol):
    """A function of the inner product, and its derivative (squared distances need none)."""

    def value(self, inner: Tensor) -> Tensor:
        """Returns the similarity, in new memory."""
        ...

    def derivative(self, inner: Tensor, value: Tensor) -> Tensor:
        """Returns the derivative at `inner`, where the function is `value`; new memory."""
        ...


class Relation(Protocol):
    """A value for every pair, made from this rank's tensors `rows` and `columns`."""

    rows: Operands
    columns: Operands

    def tile(self, rows: Operands, columns: Operands) -> Tensor:
        """Returns [r, c] of r rows and c columns, in new memory."""
        ...


class Target(Protocol):
    """A distribution over the columns of every row, and over the rows of every column."""

    rows: Operands
    columns: Operands

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
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
        tile_bytes: memory of one block of logits; two or three such blocks exist at a time. None:
            32 MiB, on a GPU 256 MiB.
    """

    exchange: Exchange = field(default_factory=AllGather)
    point: Pointwise | None = None
    pairs: Literal["all", "others"] = "all"
    weights: tuple[Relation, ...] = ()
    factor: Relation | None = None
    diagonal: float = 1.0
    targets: tuple[tuple[float, Target], ...] = ()
    tile_bytes: int | None = None

    def bytes_on(self, device: torch.device) -> int:
        """Returns the memory of one block of logits."""
        return self.tile_bytes or (CUDA_TILE_BYTES if device.type == "cuda" else TILE_BYTES)

    @property
    def relations(self) -> list[Relation | Target]:
        """All of them, in a fixed order."""
        factor = [] if self.factor is None else [self.factor]
        return [*self.weights, *factor, *(target for _, target in self.targets)]

    def refuse_no_grad_gather(self, kind: str) -> None:
        """Raises a ValueError if the exchange is one that this kind of loss has no form for."""
        if isinstance(self.exchange, NoGradGather):
            raise ValueError(
                "exchange: NoGradGather reproduces plain softmax losses only; use AllGather with "
                f"{kind}"
            )

    def require_plain(self, kind: str) -> None:
        """As `refuse_no_grad_gather`, of a kind that compares all pairs as they are."""
        assert self.pairs == "all" and self.point is None and not self.relations
        self.refuse_no_grad_gather(kind)
