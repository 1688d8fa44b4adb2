"""Near duplicates by the perceptual hash: images that differ in a few of its bits.

Two hashes that differ in at most k bits are equal in one of k + 1 bands of their bits, so that no
pair is missed (Manku et al., "Detecting near-duplicates for web crawling", 2007, section 3).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, GroupFilter, State, numbers
from .exact_duplicates import first_of_equal

BITS = 64
# Groups of more hashes are divided once more, by bands of the other bits.
DIVIDED = 256


@dataclass(frozen=True)
class NearImages(GroupFilter):
    """Leaves out an image whose hash is near that of an earlier one, kept or not.

    Which is earlier is a hash of the seed and the key. Chains collapse: of images each of which is
    near the next, the first stays, though it may be far from the last.

    Equal hashes, such as those of blank images, count once, however many there are; of m different
    hashes that share a band and a band of the rest, m^2 / 2 pairs are looked at.

    Args:
        distance: bits in which two hashes may differ to be near; 0 to 15. Each more makes bands
            shorter and groups larger.
        seed: of the order.

    Raises:
        ValueError: the distance is out of range.
    """

    distance: int = 3
    seed: int = 0

    reads = ("phash",)

    def __post_init__(self):
        if not 0 <= self.distance <= 15:
            raise ValueError(f"distance={self.distance}: give 0 to 15 of the 64 bits")

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        hashes = numbers(rows, "phash").view(np.uint64)
        bands = _bands(np.arange(BITS), self.distance + 1)
        columns = [mix(_extract(hashes, band), seeded("band", at)) for at, band in enumerate(bands)]
        return np.stack(columns, axis=1).view(np.int64)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        hashes = numbers(rows, "phash").view(np.uint64)
        group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        order = mix(numbers(rows, "key"), seeded(self.seed, "near images"))
        firsts = first_of_equal(group, hashes, order)
        near = np.ones(len(hashes), dtype=bool)
        near[firsts] = self._near(hashes[firsts], order[firsts], group[firsts])
        return {"keep": ~near}

    def _near(self, hashes: np.ndarray, order: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Returns which hashes [n], sorted by group, are near an earlier one of their group."""
        sizes = np.bincount(group)
        large = sizes[group] > DIVIDED
        near = np.zeros(len(hashes), dtype=bool)
        small = np.flatnonzero(~large)
        near[small] = _near_in_runs(hashes[small], order[small], group[small], self.distance)
        # A large group is mostly one band; which one, its bits in common tell.
        for number in np.flatnonzero(sizes > DIVIDED):
            own = slice(*np.searchsorted(group, [number, number + 1]))
            near[own] = self._near_in_large(hashes[own], order[own])
        return near

    def _near_in_large(self, hashes: np.ndarray, order: np.ndarray) -> np.ndarray:
        near = np.zeros(len(hashes), dtype=bool)
        differs = np.bitwise_or.reduce(hashes ^ hashes[0])
        free = np.flatnonzero(differs >> np.arange(BITS, dtype=np.uint64) & np.uint64(1))
        for band in _bands(free, self.distance + 1):
            value = _extract(hashes, band)
            sorting = np.argsort(value, kind="stable")
            part = _near_in_runs(hashes[sorting], order[sorting], value[sorting], self.distance)
            near[sorting] |= part
        return near


def _bands(bits: np.ndarray, count: int) -> list[np.ndarray]:
    """Divides bits into bands of about equal length."""
    return np.array_split(bits, count)


def _extract(hashes: np.ndarray, band: np.ndarray) -> np.ndarray:
    """Returns the bits of a band, the others 0; uint64 [n]."""
    mask = np.bitwise_or.reduce(np.uint64(1) << band.astype(np.uint64), initial=np.uint64(0))
    return hashes & mask


def _near_in_runs(
    hashes: np.ndarray, order: np.ndarray, run: np.ndarray, distance: int
) -> np.ndarray:
    """Returns which hashes [n] are near an earlier one of the same run; runs are consecutive."""
    near = np.zeros(len(hashes), dtype=bool)
    at = np.arange(len(hashes))
    # All pairs of rows that are one apart, then two, and so on to the length of the longest run.
    for apart in range(1, len(hashes)):
        at = at[: np.searchsorted(at, len(hashes) - apart)]
        at = at[run[at] == run[at + apart]]
        if not len(at):
            break
        hits = at[np.bitwise_count(hashes[at] ^ hashes[at + apart]) <= distance]
        later = np.where(order[hits] > order[hits + apart], hits, hits + apart)
        near[later] = True
    return near
