"""Which samples come in which epoch, where a weight is drawn anew in each.

In: the compiled arrays of a keep-list (weights, keys), a seed and an epoch. Out: how often each
sample comes, the counts of the shards, the same total in every epoch. Nothing in memory grows with
samples.

A weight w is floor(w) samples, and one more with probability p = w - floor(w). By how much a draw
favours a sample is its rank u / (1 - u) * (1 - p) / p, where u in (0, 1) is a hash of its key, the
seed and the epoch. Of each source the round(sum of p) samples of the lowest ranks come: Pareto
sampling (Rosén, "On sampling with probability proportional to size", 1997), whose inclusion
probabilities are p up to an error of the order of 1 / sum of p (1 - p). A rank below 1 is u < p, so
the last rank that comes is near 1: one pass over the source counts the samples below a narrow
window around 1 and sorts those inside.
"""

import math
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import whole_file
from ..hashing import mix, seeded
from ..shards.locks import locked
from .counts import EpochCounts

# Rows drawn at once: arrays that stay in a processor's cache.
PIECE_ROWS = 1 << 16
# The draws of larger sources are written beside the list, for all processes; smaller ones take less
# than half a second.
FILED_ROWS = 1 << 22
# The window holds about 16 square roots of the expected draws: 1.2 million for 5 billion.
WINDOW_ROWS = 1 << 22
# At a boundary two epochs alternate.
EPOCHS_KEPT = 3
# Fractions are added up in these units, so that their sum depends on no order.
UNITS = float(1 << 32)
# Rows of each piece that are looked at for keys that repeat.
ROWS_PROBED = 1024


@dataclass(frozen=True)
class Draw:
    """What comes of a source in an epoch: samples up to (rank, key, row), and the whole copies."""

    rank: float
    key: int
    row: int
    counts: np.ndarray


def write_sums(folder: Path, source_ids: np.ndarray) -> None:
    """Adds up the weights of each shard: `sums.npz` beside the compiled arrays.

    Raises:
        ValueError: the keys are no keys, or no sample would come.
    """
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    weights = np.load(folder / "weights.npy", mmap_mode="r")
    keys = np.load(folder / "keys.npy", mmap_mode="r")
    sums = np.zeros((2, len(offsets) - 1), dtype=np.int64)
    spread = np.zeros(len(offsets) - 1)
    for first in range(0, len(weights), PIECE_ROWS):
        rows = slice(first, min(first + PIECE_ROWS, len(weights)))
        _check_keys(keys[rows][:ROWS_PROBED])
        whole, parts = _split(weights[rows])
        shards, starts = _shards_of(offsets, rows)
        sums[0, shards] += np.add.reduceat(whole, starts)
        sums[1, shards] += np.add.reduceat((parts * UNITS).astype(np.int64), starts)
        spread[shards] += np.add.reduceat(parts * (1 - parts), starts)
    np.savez(
        folder / "sums.npz", whole=sums[0], parts=sums[1], spread=spread, source_ids=source_ids
    )


class Draws:
    """The draws of a compiled keep-list.

    Args:
        folder: the compiled arrays and what `write_sums` wrote.
        seed: any integer.

    Attributes:
        source_ids: source of each shard, int64 [shards].
        totals: samples of an epoch of each source, int64 [sources].
        least: see `EpochCounts`. A shard of n expected draws has fewer than n - 8 sqrt(n) with a
            probability below 1e-13 (Chernoff).
    """

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.offsets: np.ndarray = np.load(folder / "offsets.npy", mmap_mode="r")
        self._weights: np.ndarray = np.load(folder / "weights.npy", mmap_mode="r")
        self._keys: np.ndarray = np.load(folder / "keys.npy", mmap_mode="r")
        with np.load(folder / "sums.npz") as sums:
            whole, parts, spread = sums["whole"], sums["parts"], sums["spread"]
            self.source_ids: np.ndarray = sums["source_ids"]
        num_sources = int(self.source_ids.max()) + 1
        self._shards = [np.flatnonzero(self.source_ids == source) for source in range(num_sources)]
        self._slots = np.empty_like(self.source_ids)
        self._drawn = np.zeros(num_sources, dtype=np.int64)
        self._spread = np.bincount(self.source_ids, spread, num_sources)
        self.totals = np.zeros(num_sources, dtype=np.int64)
        for source, own in enumerate(self._shards):
            self._slots[own] = np.arange(len(own))
            # In two halves: the sum may not fit into 64 bits.
            high, low = int((parts[own] >> 32).sum()), int((parts[own] & 0xFFFFFFFF).sum())
            self._drawn[source] = ((high << 32) + low + (1 << 31)) >> 32
            self.totals[source] = whole[own].sum() + self._drawn[source]
        expected = parts / UNITS
        fewest = whole + np.floor(np.maximum(expected - 8 * np.sqrt(expected), 0))
        self.least = np.where(whole + parts > 0, np.maximum(fewest, 1), 0).astype(np.int64)
        self._cache: OrderedDict[tuple[int, int], Draw] = OrderedDict()

    def draw(self, source: int, epoch: int) -> Draw:
        """Returns the draw of an epoch of a source; that of a large one is kept in a file."""
        name = (source, epoch)
        if name not in self._cache:
            kept = sum(1 for other, _ in self._cache if other == source)
            if kept >= EPOCHS_KEPT:
                del self._cache[next(key for key in self._cache if key[0] == source)]
            self._cache[name] = self._filed(source, epoch)
        return self._cache[name]

    def counts(self, source: int, epoch: int, shards: np.ndarray) -> np.ndarray:
        """Returns the samples of some shards of a source in an epoch, int64 [n]."""
        return self.draw(source, epoch).counts[self._slots[shards]]

    def times(self, shard: int, epoch: int) -> np.ndarray:
        """Returns how often each listed sample of a shard comes in an epoch, int64 [n]."""
        draw = self.draw(int(self.source_ids[shard]), epoch)
        rows = slice(int(self.offsets[shard]), int(self.offsets[shard + 1]))
        whole, ranks, keys = self._ranked(rows, epoch)
        numbers = np.arange(rows.start, rows.stop)
        ties = (ranks == draw.rank) & (
            (keys < draw.key) | (keys == draw.key) & (numbers <= draw.row)
        )
        return whole + ((ranks < draw.rank) | ties)

    def _filed(self, source: int, epoch: int) -> Draw:
        if np.diff(self.offsets)[self._shards[source]].sum() < FILED_ROWS:
            return self._made(source, epoch)
        path = self.folder / f"draw-{self.seed}-{source}-{epoch}.npz"
        if (draw := self._read(path, source)) is not None:
            return draw
        made = None
        try:
            # One process draws, the others wait and read.
            with locked(path.with_name(f".{path.name}.lock")):
                if (draw := self._read(path, source)) is None:
                    draw = made = self._made(source, epoch)
                    with whole_file(path) as part, open(part, "wb") as file:
                        np.savez(
                            file,
                            rank=draw.rank,
                            key=np.int64(draw.key),
                            row=np.int64(draw.row),
                            counts=draw.counts,
                        )
                return draw
        except OSError:
            # A folder that cannot be written: every process draws for itself.
            return made or self._made(source, epoch)

    def _read(self, path: Path, source: int) -> Draw | None:
        """Returns a stored draw; None: there is none, or it is damaged."""
        try:
            with np.load(path) as stored:
                found = {name: stored[name] for name in ("rank", "key", "row", "counts")}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        counts = found["counts"]
        if len(counts) != len(self._shards[source]) or counts.sum() != self.totals[source]:
            return None
        return Draw(float(found["rank"]), int(found["key"]), int(found["row"]), counts)

    def _made(self, source: int, epoch: int) -> Draw:
        """Finds the last sample that comes, in one pass unless the window misses it."""
        target, spread = int(self._drawn[source]), max(float(self._spread[source]), 1e-300)
        # Near 1 a change of the rank by d changes the number of samples by d * spread, whose
        # deviation is sqrt(spread); the constant is for few draws.
        width = (8 * math.sqrt(spread) + 32) / spread
        while True:
            low, high = 1 / (1 + width), 1 + width
            counts, below, window = self._pass(source, epoch, low, high)
            if 0 <= target - below <= len(window):
                break
            width *= 64
        come = np.sort(window, order=("rank", "key", "row"))[: target - below]
        shards = np.searchsorted(self.offsets, come["row"], side="right") - 1
        counts += np.bincount(self._slots[shards], minlength=len(counts))
        assert counts.sum() == self.totals[source], (source, epoch)
        if not len(come):
            return Draw(low, -(1 << 63), -1, counts)
        last = come[-1]
        return Draw(float(last["rank"]), int(last["key"]), int(last["row"]), counts)

    def _pass(
        self, source: int, epoch: int, low: float, high: float
    ) -> tuple[np.ndarray, int, np.ndarray]:
        """Returns counts of the shards and number of samples below `low`, and those up to `high`.

        Raises:
            ValueError: the window holds too many, which only keys that repeat can cause.
        """
        counts = np.zeros(len(self._shards[source]), dtype=np.int64)
        below, num_inside = 0, 0
        inside: list[np.ndarray] = []
        kind = [("rank", np.float64), ("key", np.int64), ("row", np.int64)]
        for rows in self._pieces(self._shards[source]):
            whole, ranks, keys = self._ranked(rows, epoch)
            under = ranks < low
            below += int(np.count_nonzero(under))
            shards, starts = _shards_of(self.offsets, rows)
            counts[self._slots[shards]] += np.add.reduceat(whole + under, starts)
            hits = np.flatnonzero(~under & (ranks <= high))
            found = np.empty(len(hits), dtype=kind)
            found["rank"], found["key"], found["row"] = ranks[hits], keys[hits], rows.start + hits
            inside.append(found)
            num_inside += len(hits)
            if num_inside > WINDOW_ROWS:
                raise ValueError(
                    f"epoch {epoch} cannot be drawn: too many samples of the keep-list in "
                    f"'{self.folder}' have the same draw; its column key must differ between "
                    "samples, as the keys of batches do"
                )
        return counts, below, np.concatenate(inside) if inside else np.empty(0, dtype=kind)

    def _pieces(self, shards: np.ndarray) -> Iterator[slice]:
        """Yields the rows of some shards, ascending, in pieces."""
        cuts = np.flatnonzero(np.diff(shards) > 1) + 1
        for run in np.split(shards, cuts):
            if len(run):
                first, last = int(self.offsets[run[0]]), int(self.offsets[run[-1] + 1])
                for start in range(first, last, PIECE_ROWS):
                    yield slice(start, min(start + PIECE_ROWS, last))

    def _ranked(self, rows: slice, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns whole copies int64, ranks float64 and keys int64 of rows."""
        whole, parts = _split(self._weights[rows])
        keys = np.asarray(self._keys[rows])
        hashed = mix(keys, seeded(self.seed, "redrawn", epoch))
        # 52 bits and a half: never 0 or 1, and exact. A division by 0 ranks a sample without a
        # fraction last.
        draws = ((hashed >> np.uint64(12)).astype(np.float64) + 0.5) / float(1 << 52)
        with np.errstate(divide="ignore"):
            ranks = draws / (1 - draws) * ((1 - parts) / parts)
        return whole, ranks, keys


class DrawnCounts(EpochCounts):
    """Counts of shards whose samples are drawn anew.

    Args:
        draws: draws of the list.
        shards: all shards of some sources; of all by default.
    """

    def __init__(self, draws: Draws, shards: np.ndarray | None = None):
        self.draws = draws
        self.shards = np.arange(len(draws.source_ids)) if shards is None else shards
        self.least = draws.least[self.shards]
        sources = np.unique(draws.source_ids[self.shards])
        assert np.isin(draws.source_ids, sources).sum() == len(self.shards), "not whole sources"
        self.num_samples = int(draws.totals[sources].sum())

    def at(self, epoch: int, shards: np.ndarray | None = None) -> np.ndarray:
        asked = self.shards if shards is None else self.shards[shards]
        sources = self.draws.source_ids[asked]
        counts = np.empty(len(asked), dtype=np.int64)
        for source in np.unique(sources).tolist():
            rows = sources == source
            counts[rows] = self.draws.counts(source, epoch, asked[rows])
        return counts

    def of(self, shards: np.ndarray) -> "DrawnCounts":
        return DrawnCounts(self.draws, self.shards[shards])


def _split(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns whole copies, int64, and the rest, float64 in [0, 1)."""
    exact = np.asarray(weights, dtype=np.float64)
    whole = np.floor(exact)
    return whole.astype(np.int64), exact - whole


def _shards_of(offsets: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray]:
    """Returns the shards that have some of these rows, and where each one's rows begin in them."""
    first = int(np.searchsorted(offsets, rows.start, side="right")) - 1
    last = int(np.searchsorted(offsets, rows.stop, side="left"))
    shards = np.arange(first, last)
    shards = shards[np.diff(offsets[first : last + 1]) > 0]
    return shards, np.maximum(np.asarray(offsets[shards]) - rows.start, 0)


def _check_keys(keys: np.ndarray) -> None:
    """Raises a ValueError if most keys are the same; a few tell nothing."""
    if len(keys) >= 16 and len(np.unique(keys)) < len(keys) / 2:
        raise ValueError(
            f"the column key of the keep-lists has {len(np.unique(keys))} different values in "
            f"{len(keys)} rows; weights are drawn by key, so write the keys that batches hold, or "
            "leave the column out"
        )
