"""Where the row of each key is, in files that were written for other shards.

In: the keys of every file of a store. Out: two memory-mapped arrays, made once: `keys.npy` int64
[n], in buckets by a hash of the key and sorted within each, and `places.npy` int64 [n], the number
of the file << 32 | the row. Making them takes memory for a file's keys and a bucket; a look-up, for
the keys that are looked up.
"""

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..files import beside
from ..hashing import mix, seeded
from ..shards.locks import locked

KEYS_A_BUCKET = 1 << 20
BUCKET_KEY = seeded("key index")

# Returns the keys of a file by its number, int64 [rows].
KeysOf = Callable[[int], np.ndarray]


class KeyIndex:
    """An index that is there.

    Args:
        folder: of the arrays.
    """

    def __init__(self, folder: Path):
        self._keys = np.load(folder / "keys.npy", mmap_mode="r")
        self._places = np.load(folder / "places.npy", mmap_mode="r")
        self._starts = np.load(folder / "starts.npy")

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the place of each key, int64 [n], -1 where it has none; of two, the first."""
        found = np.full(len(keys), -1, dtype=np.int64)
        for number, mine in groups_of(_buckets(keys, len(self._starts) - 1)):
            rows = slice(self._starts[number], self._starts[number + 1])
            stored = self._keys[rows]
            if len(stored):
                at = np.searchsorted(stored, keys[mine]).clip(max=len(stored) - 1)
                found[mine] = np.where(stored[at] == keys[mine], self._places[rows][at], -1)
        return found


def open_index(folder: Path, keys_of: KeysOf, counts: Sequence[int]) -> KeyIndex:
    """Opens the index in a folder, and makes it first if it is not there.

    Args:
        folder: of the index; whole or absent.
        keys_of: the keys of each file.
        counts: rows of each file.

    Raises:
        OSError: it cannot be written.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():
                _make(folder, keys_of, counts)
    return KeyIndex(folder)


def _make(folder: Path, keys_of: KeysOf, counts: Sequence[int]) -> None:
    part = beside(folder)
    part.mkdir()
    try:
        _fill(part, keys_of, counts)
        # Another machine may have been first; its files are the same.
        with contextlib.suppress(OSError):
            part.rename(folder)
        assert folder.exists()
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(folder: Path, keys_of: KeysOf, counts: Sequence[int]) -> None:
    total = sum(counts)
    num_buckets = max(1, total // KEYS_A_BUCKET)
    sizes = np.zeros(num_buckets, dtype=np.int64)
    for file in range(len(counts)):
        sizes += np.bincount(_buckets(keys_of(file), num_buckets), minlength=num_buckets)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    np.save(folder / "starts.npy", starts)
    keys, places = (
        np.lib.format.open_memmap(folder / name, mode="w+", dtype=np.int64, shape=(total,))
        for name in ("keys.npy", "places.npy")
    )
    free = starts[:-1].copy()
    for file in range(len(counts)):
        own = keys_of(file)
        buckets = _buckets(own, num_buckets)
        order = np.argsort(buckets, kind="stable")
        numbers, firsts, lengths = np.unique(buckets[order], return_index=True, return_counts=True)
        targets = np.arange(len(order)) + np.repeat(free[numbers] - firsts, lengths)
        free[numbers] += lengths
        keys[targets] = own[order]
        places[targets] = np.int64(file) << 32 | order
    for first, last in itertools.pairwise(starts.tolist()):
        order = np.argsort(keys[first:last], kind="stable")
        keys[first:last] = keys[first:last][order]
        places[first:last] = places[first:last][order]
    keys.flush()
    places.flush()


def groups_of(numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields each of the numbers [n] once, ascending, and where it is, ascending int64 [m]."""
    order = np.argsort(numbers, kind="stable")
    firsts = np.flatnonzero(np.diff(numbers[order], prepend=-1)).tolist()
    for first, last in itertools.pairwise([*firsts, len(order)]):
        yield int(numbers[order[first]]), order[first:last]


def _buckets(keys: np.ndarray, num_buckets: int) -> np.ndarray:
    return (mix(keys, BUCKET_KEY) % np.uint64(num_buckets)).astype(np.int64)
