"""All pairs of rows and columns, tile by tile: the logits of a tile, and gradients by its logits.

In: rows [b, d], joined columns, and a `Pairing`. Out: tiles, each with its logits in memory that is
used again for the next, and gradients of rows, columns, scale and bias from those by the logits.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from ..distributed.columns import Columns
from . import tile_ops
from .pairing import Pairing, Relation, Target

# Columns of a tile at most: with more, a tile of the same memory would be too thin to be fast.
MAX_WIDTH = 1 << 15
# Numbers in the rows of a GPU's tiles: a multiple.
ALIGNED = 16
# Exponentials of logits within these bounds, and sums of them, neither overflow nor vanish in fp32:
# they need no shift by the maximum, so that one exponential serves both directions.
SAFE_LOGIT = 60.0

Buffer = Literal["products", "logits", "weights", "grad"]


class Tiling:
    """All pairs of rows and columns.

    Args:
        rows: [b, d].
        scale: of the logits, [1].
        bias: [1], added to them; None: none.
        pairing: which pairs count, and how.
        joined: the columns of all ranks, and those of the pairing's relations.
    """

    def __init__(
        self, rows: Tensor, scale: Tensor, bias: Tensor | None, pairing: Pairing, joined: Columns
    ):
        self.rows, self.scale, self.bias = rows, scale, bias
        self.pairing, self.joined = pairing, joined
        self.scaled_rows = rows * scale if pairing.point is None else rows
        self.relations = pairing.relations
        self.relation_rows = [_as_precise(rows, relation.rows) for relation in self.relations]
        self.ops = tile_ops.of(rows)
        self._buffers: dict[Buffer, Tensor] = {}

    def tiles(self) -> Iterator["Tile"]:
        """Yields all tiles."""
        for block, tensors in self.joined.blocks():
            yield from self._tiles(block, tensors)

    def tiles_backward(self, gradients: "Gradients") -> Iterator["Tile"]:
        """Yields all tiles again; `gradients.add` is to be called for each before the next."""
        for block, tensors, by_columns in self.joined.blocks_with_grad():
            for tile in self._tiles(block, tensors):
                gradients.by_columns = by_columns[tile.columns.start - block.start :]
                yield tile

    def buffer(self, name: Buffer, height: int, width: int) -> Tensor:
        """Returns memory for a tile, the same one at each call with this name."""
        # On a GPU rows begin where several numbers can be read at once.
        stride = -(-width // ALIGNED) * ALIGNED if self.rows.is_cuda else width
        size = height * stride
        if name not in self._buffers or len(self._buffers[name]) < size:
            self._buffers[name] = self.rows.new_empty(size)
        return self._buffers[name][:size].view(height, stride)[:, :width]

    def _tiles(self, block: slice, tensors: tuple[Tensor, ...]) -> Iterator["Tile"]:
        row_bytes, tile_bytes = self.rows.element_size(), self.pairing.bytes_on(self.rows.device)
        for columns in _equal_slices(len(tensors[0]), MAX_WIDTH):
            width = columns.stop - columns.start
            max_rows = max(1, tile_bytes // (width * row_bytes))
            values = tuple(tensor[columns] for tensor in tensors)
            numbers = slice(block.start + columns.start, block.start + columns.stop)
            for rows in _equal_slices(len(self.rows), max_rows):
                yield Tile(self, rows, numbers, values)


class Tile:
    """Some rows against some columns.

    Attributes:
        rows, columns: which ones, the columns by their numbers among all ranks'.
        own: the part of the rows whose own column is in the tile.
        values: the columns.
        logits: after `compute`.
    """

    logits: Tensor

    def __init__(self, tiling: Tiling, rows: slice, columns: slice, tensors: tuple[Tensor, ...]):
        self.tiling, self.rows, self.columns = tiling, rows, columns
        self.values, self._relation_columns = tensors[0], tensors[1:]
        first = tiling.joined.first
        start = max(rows.start, columns.start - first)
        self.own = slice(start, max(start, min(rows.stop, columns.stop - first)))
        self._own_corner = (start - rows.start, first + start - columns.start)
        self._products = self._similarity = self._factor = None

    def compute(self) -> Tensor:
        """Returns the logits, in memory that the next tile overwrites."""
        tiling, point = self.tiling, self.tiling.pairing.point
        rows, products = tiling.scaled_rows[self.rows], self.buffer("products")
        logits = tiling.ops.product(rows, self.values.T, products)
        if point is not None:
            self._products = logits
            self._similarity = point.value(logits)
            logits = torch.mul(self._similarity, tiling.scale, out=self.buffer("logits"))
        if tiling.pairing.factor is not None:
            self._factor = self.evaluate(tiling.pairing.factor)
            logits.mul_(self._factor)
        if tiling.bias is not None:
            logits.add_(tiling.bias)
        self.logits = logits
        return logits

    def mask(self) -> None:
        """Sets the logits of pairs that do not count to minus infinity, weighs the others."""
        pairing, logits = self.tiling.pairing, self.logits
        for relation in pairing.weights:
            weight = self.evaluate(relation)
            if weight.dtype == torch.bool:
                logits.masked_fill_(weight.logical_not_(), -torch.inf)
            else:
                assert self.tiling.bias is None  # A sigmoid's pair is kept or not.
                logits.add_(weight.log_())
        if pairing.pairs == "others":
            self.diagonal(logits).fill_(-torch.inf)

    def mask_others(self) -> None:
        """Masks, but leaves a row's own column as it is, unless it is left out as such."""
        pairing, own = self.tiling.pairing, self.diagonal(self.logits)
        positive = own.clone() if pairing.weights and pairing.pairs != "others" else None
        self.mask()
        if positive is not None:
            own.copy_(positive)

    def targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the parts of the target: of each row over columns, of each column over rows."""
        for part, target in self.tiling.pairing.targets:
            rows, columns = self._sides(target)
            by_rows, by_columns = target.tile(rows, columns, self.tiling.joined.total)
            yield by_rows * part, by_columns * part

    def evaluate(self, relation: Relation) -> Tensor:
        """Returns the values of a relation for the pairs of the tile."""
        return relation.tile(*self._sides(relation))

    def diagonal(self, pairs: Tensor) -> Tensor:
        """Returns a view of the rows' own columns in a tensor of the tile's shape."""
        size, (row, column) = self.own.stop - self.own.start, self._own_corner
        if not size:
            return pairs.new_empty(0)
        return pairs[row : row + size, column : column + size].diagonal()

    def buffer(self, name: Buffer) -> Tensor:
        """Returns memory of the tile's shape; see `Tiling.buffer`."""
        return self.tiling.buffer(name, self.rows.stop - self.rows.start, len(self.values))

    def products_grad(self, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turns gradients by logits into those by inner products, but for the scale.

        Returns:
            The gradients, in the same memory, and what they add to that of the scale (None: it
            follows from the gradient of the rows).
        """
        point, by_scale = self.tiling.pairing.point, None
        if self._factor is not None:
            grad.mul_(self._factor)
        if point is not None:
            assert self._products is not None and self._similarity is not None
            by_scale = (grad * self._similarity).sum()
            grad.mul_(point.derivative(self._products, self._similarity))
        return grad, by_scale

    def _sides(self, relation: Relation | Target) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        relations = self.tiling.relations
        index = next(i for i, other in enumerate(relations) if other is relation)
        rows = tuple(tensor[self.rows] for tensor in self.tiling.relation_rows[index])
        first = sum(len(other.columns) for other in relations[:index])
        return rows, self._relation_columns[first : first + len(relation.columns)]


class Gradients:
    """Adds up the gradients of rows, columns, scale and bias over tiles."""

    by_columns: Tensor

    def __init__(self, tiling: Tiling):
        self.tiling = tiling
        self.by_rows = torch.zeros_like(tiling.rows)
        self.by_scale, self.by_bias = (torch.zeros_like(tiling.scale) for _ in range(2))

    def add(self, tile: Tile, grad: Tensor) -> None:
        """Adds those of one tile; `grad` is that by its logits, to be overwritten."""
        if self.tiling.bias is not None:
            self.by_bias.add_(grad.sum())
        grad, by_scale = tile.products_grad(grad)
        if by_scale is not None:
            self.by_scale.add_(by_scale)
        add_product, rows = self.tiling.ops.add_product, self.tiling.rows[tile.rows]
        add_product(grad, tile.values, self.by_rows[tile.rows])
        add_product(grad.T, rows, self.by_columns[: len(tile.values)])

    def all(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Returns those of rows, of this rank's columns, of the scale and of the bias.

        None: columns that were sent ahead have their gradient from elsewhere; there is no bias.
        """
        tiling = self.tiling
        if tiling.pairing.point is None:
            # Row by row, without the products of all of them in memory.
            by_row = torch.einsum("bd,bd->b", self.by_rows, tiling.rows)
            self.by_scale = by_row.sum().view_as(tiling.scale)
        by_columns = tiling.joined.return_gradient(tiling.scale)
        bias = None if tiling.bias is None else self.by_bias.view_as(tiling.bias)
        return self.by_rows.mul_(tiling.scale), by_columns, self.by_scale, bias


def open_columns(columns: Tensor, pairing: Pairing) -> Columns:
    """Joins this rank's columns, and those of the pairing's relations, to the other ranks'."""
    more = [t for relation in pairing.relations for t in _as_precise(columns, relation.columns)]
    return pairing.exchange.open(columns, *more)


def is_all_pairs(tile: Tile) -> bool:
    """Returns whether a tile holds all pairs, so that its logits can be saved: it is small."""
    tiling, num_rows = tile.tiling, tile.rows.stop - tile.rows.start
    has_all = num_rows == len(tiling.rows) and len(tile.values) == tiling.joined.total
    return has_all and tiling.pairing.point is None and tiling.pairing.factor is None


def has_safe_logits(tiling: Tiling) -> bool:
    """Returns whether no logit exceeds `SAFE_LOGIT` in size, by the Cauchy-Schwarz inequality."""
    rows, joined, pairing = tiling.rows, tiling.joined, tiling.pairing
    if rows.is_cuda or pairing.point is not None or pairing.factor is not None:
        # On a GPU exponentials are cheap, and reading the bound would make the host wait.
        return False
    if joined.num_blocks > 1 or not len(rows) or not joined.total:
        return False
    ((_, (columns, *_)),) = joined.blocks()
    longest = rows.square().sum(1).amax() * columns.square().sum(1).amax()
    shift = 0.0 if tiling.bias is None else float(tiling.bias.abs())
    return float(tiling.scale.abs() * longest.sqrt()) + shift <= SAFE_LOGIT


def _as_precise(features: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gives floating tensors the precision of the features."""
    return tuple(t.to(features.dtype) if t.is_floating_point() else t for t in tensors)


def _equal_slices(total: int, max_size: int) -> Iterator[slice]:
    """Yields slices of equal length: a thin last one would run at a fraction of the speed."""
    size = -(-total // max(1, -(-total // max_size)))
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))
