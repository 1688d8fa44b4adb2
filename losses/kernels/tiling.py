"""All pairs of rows and columns, tile by tile: the logits of a tile and the way back from them.

In: rows [b, d], joined columns, and a `Pairing`. Out: tiles, each with its logits in memory that is
used again for the next, and gradients of rows, columns, scale and bias from the tiles' slopes.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..distributed.columns import Columns
from .pairing import Pairing, Relation, Target

# Columns of a tile at most: with more, a tile of the same memory would be too thin to be fast.
MAX_WIDTH = 1 << 15


class Sweep:
    """All pairs.

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
        self.relation_rows = [_like(rows, relation.rows) for relation in self.relations]
        self._memory: dict[int, Tensor] = {}

    def forth(self) -> Iterator["Tile"]:
        """Yields all tiles."""
        for where, tensors in self.joined.visit():
            yield from self._tiles(where, tensors)

    def back(self, gradients: "Gradients") -> Iterator["Tile"]:
        """Yields all tiles again; `gradients.add` is to be called for each before the next."""
        for where, tensors, by_columns in self.joined.visit_back():
            for tile in self._tiles(where, tensors):
                start = where.start
                gradients.by_columns = by_columns[tile.columns.start - start :]
                yield tile

    def memory(self, which: int, height: int, width: int) -> Tensor:
        """Returns memory for a tile, the same one at each call."""
        size = height * width
        if which not in self._memory or len(self._memory[which]) < size:
            self._memory[which] = self.rows.new_empty(size)
        return self._memory[which][:size].view(height, width)

    def _tiles(self, where: slice, tensors: tuple[Tensor, ...]) -> Iterator["Tile"]:
        row_bytes = self.rows.element_size()
        for columns in _parts(len(tensors[0]), MAX_WIDTH):
            width = columns.stop - columns.start
            most = max(1, self.pairing.tile_bytes // (width * row_bytes))
            here = tuple(tensor[columns] for tensor in tensors)
            numbers = slice(where.start + columns.start, where.start + columns.stop)
            for rows in _parts(len(self.rows), most):
                yield Tile(self, rows, numbers, here)


class Tile:
    """Some rows against some columns.

    Attributes:
        rows, columns: which ones, the columns by their numbers among all ranks'.
        own: the part of the rows whose own column is in the tile.
        logits: after `compute`.
    """

    logits: Tensor

    def __init__(self, sweep: Sweep, rows: slice, columns: slice, tensors: tuple[Tensor, ...]):
        self.sweep, self.rows, self.columns = sweep, rows, columns
        self.values, self._more = tensors[0], tensors[1:]
        first = sweep.joined.first
        start = max(rows.start, columns.start - first)
        self.own = slice(start, max(start, min(rows.stop, columns.stop - first)))
        self._place = (start - rows.start, first + start - columns.start)
        self._inner = self._similarity = self._factor = None

    def compute(self) -> Tensor:
        """Returns the logits, in memory that the next tile overwrites."""
        sweep, point = self.sweep, self.sweep.pairing.point
        logits = torch.mm(sweep.scaled_rows[self.rows], self.values.T, out=self.memory(0))
        if point is not None:
            self._inner = logits
            self._similarity = point.value(logits)
            logits = torch.mul(self._similarity, sweep.scale, out=self.memory(1))
        if sweep.pairing.factor is not None:
            self._factor = self.of(sweep.pairing.factor)
            logits.mul_(self._factor)
        if sweep.bias is not None:
            logits.add_(sweep.bias)
        self.logits = logits
        return logits

    def leave_out(self, keeps_own: bool) -> None:
        """Makes the pairs that do not count minus infinity."""
        pairing, logits = self.sweep.pairing, self.logits
        own = self.diagonal(logits)
        positive = own.clone() if pairing.weights and keeps_own else None
        for relation in pairing.weights:
            weight = self.of(relation)
            if weight.dtype == torch.bool:
                logits.masked_fill_(weight.logical_not_(), -torch.inf)
            else:
                assert self.sweep.bias is None  # A sigmoid's pair is kept or not.
                logits.add_(weight.log_())
        if pairing.pairs == "others":
            own.fill_(-torch.inf)
        elif positive is not None:
            own.copy_(positive)

    def targets(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the parts of the target: of each row over columns, of each column over rows."""
        for part, target in self.sweep.pairing.targets:
            rows, columns = self._sides(target)
            by_rows, by_columns = target.tile(rows, columns, self.sweep.joined.total)
            yield by_rows * part, by_columns * part

    def of(self, relation: Relation) -> Tensor:
        """Returns what a relation says about the pairs of the tile."""
        return relation.tile(*self._sides(relation))

    def diagonal(self, pairs: Tensor) -> Tensor:
        """Returns a view of the rows' own columns in a tensor of the tile's shape."""
        size, (row, column) = self.own.stop - self.own.start, self._place
        if not size:
            return pairs.new_empty(0)
        return pairs[row : row + size, column : column + size].diagonal()

    def memory(self, which: int) -> Tensor:
        """Returns memory of the tile's shape; see `Sweep.memory`."""
        return self.sweep.memory(which, self.rows.stop - self.rows.start, len(self.values))

    def similarity_slope(self, slope: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turns slopes by logits into those by inner products, but for the scale.

        Returns:
            The slopes, in the same memory, and what they add to the gradient of the scale (None:
            it follows from the gradient of the rows).
        """
        point, by_scale = self.sweep.pairing.point, None
        if self._factor is not None:
            slope.mul_(self._factor)
        if point is not None:
            assert self._inner is not None and self._similarity is not None
            by_scale = (slope * self._similarity).sum()
            slope.mul_(point.slope(self._inner, self._similarity))
        return slope, by_scale

    def _sides(self, relation: Relation | Target) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        relations = self.sweep.relations
        which = next(i for i, other in enumerate(relations) if other is relation)
        rows = tuple(tensor[self.rows] for tensor in self.sweep.relation_rows[which])
        skipped = sum(len(other.columns) for other in relations[:which])
        return rows, self._more[skipped : skipped + len(relation.columns)]


class Gradients:
    """Adds up the gradients of rows, columns, scale and bias over tiles."""

    by_columns: Tensor

    def __init__(self, sweep: Sweep):
        self.sweep = sweep
        self.by_rows = torch.zeros_like(sweep.rows)
        self.by_scale, self.by_bias = (torch.zeros_like(sweep.scale) for _ in range(2))

    def add(self, tile: Tile, slope: Tensor) -> None:
        """Adds those of one tile; `slope` are the derivatives by its logits, to be overwritten."""
        if self.sweep.bias is not None:
            self.by_bias.add_(slope.sum())
        slope, by_scale = tile.similarity_slope(slope)
        if by_scale is not None:
            self.by_scale.add_(by_scale)
        self.by_rows[tile.rows].addmm_(slope, tile.values)
        self.by_columns[: len(tile.values)].addmm_(slope.T, self.sweep.rows[tile.rows])

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Returns those of rows, of this rank's columns, of the scale and of the bias."""
        sweep = self.sweep
        if sweep.pairing.point is None:
            # Row by row, without the products of all of them in memory.
            by_row = torch.einsum("bd,bd->b", self.by_rows, sweep.rows)
            self.by_scale = by_row.sum().view_as(sweep.scale)
        by_columns = sweep.joined.gradient().mul_(sweep.scale)
        bias = None if sweep.bias is None else self.by_bias.view_as(sweep.bias)
        return self.by_rows.mul_(sweep.scale), by_columns, self.by_scale, bias


def open_columns(columns: Tensor, pairing: Pairing) -> Columns:
    """Joins this rank's columns, and those of the pairing's relations, to the other ranks'."""
    more = [t for relation in pairing.relations for t in _like(columns, relation.columns)]
    return pairing.exchange.open(columns.detach(), *more)


def _like(features: Tensor, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Gives floating tensors the precision of the features."""
    return tuple(t.to(features.dtype) if t.is_floating_point() else t for t in tensors)


def _parts(total: int, most: int) -> Iterator[slice]:
    """Yields slices of equal length: a thin last one would run at a fraction of the speed."""
    size = -(-total // max(1, -(-total // most)))
    for start in range(0, total, max(1, size)):
        yield slice(start, min(start + size, total))


# Exponentials of logits within these bounds, and sums of them, neither overflow nor vanish in fp32:
# they need no shift by the maximum, so that one exponential serves both directions.
SAFE_LOGIT = 60.0


def _is_all(tile: Tile, sweep: Sweep) -> bool:
    """Tells whether a tile holds all pairs and can be kept: it is small enough."""
    pairing, num_rows = sweep.pairing, tile.rows.stop - tile.rows.start
    is_whole = num_rows == len(sweep.rows) and len(tile.values) == sweep.joined.total
    return is_whole and pairing.point is None and pairing.factor is None


def _is_safe(
    rows: Tensor, joined: Columns, scale: Tensor, pairing: Pairing, bias: Tensor | None = None
) -> bool:
    """Tells whether no logit exceeds `SAFE_LOGIT` in size, by the Cauchy-Schwarz inequality."""
    if rows.is_cuda or pairing.point is not None or pairing.factor is not None:
        # On a GPU exponentials are cheap, and asking would make the host wait.
        return False
    if joined.num_blocks > 1 or not len(rows) or not joined.total:
        return False
    ((_, (columns, *_)),) = joined.visit()
    longest = rows.square().sum(1).amax() * columns.square().sum(1).amax()
    shift = 0.0 if bias is None else float(bias.abs())
    return float(scale.abs() * longest.sqrt()) + shift <= SAFE_LOGIT
