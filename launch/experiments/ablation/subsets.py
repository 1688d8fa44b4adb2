"""Subsets of a pool: their sizes, what they have in common, and random ones of the same size.

In: a manifest and keep-lists. Out: a bit a sample of the pool for each subset (16 MB for 130
million), and keep-lists of random subsets. A random choice is a hash of source, file name, number
in the shard and seed, so that it is the same on every machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ....data.files import whole_file
from ....data.hashing import mix, seeded
from ....data.order.selection import LossWeights, Selection
from ....data.shards.manifest import Manifest

BITS_OF_A_BIN = 20  # of the hashes, when the threshold of a draw is looked for
EQUAL_SIZES = 0.005  # sizes that differ by less share a random subset
_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.int64)


@dataclass(frozen=True)
class Bits:
    """Which samples of a pool a subset has.

    Attributes:
        size: how many.
        packed: a bit a sample, in the order of the manifest.
        fingerprint: of the samples and their weights.
    """

    size: int
    packed: np.ndarray
    fingerprint: str

    def common(self, other: "Bits") -> int:
        """Returns the number of samples that both have."""
        return count(self.packed & other.packed)

    def jaccard(self, other: "Bits") -> float:
        """Returns the samples that both have, as a share of those that either has."""
        common = self.common(other)
        return common / (self.size + other.size - common)

    def of_shard(self, start: int, stop: int) -> np.ndarray:
        """Returns bool [stop - start] of the samples from `start` on."""
        part = np.unpackbits(self.packed[start // 8 : -(-stop // 8)])
        return part[start % 8 : start % 8 + stop - start].astype(bool)


def count(packed: np.ndarray) -> int:
    """Returns the number of ones."""
    return sum(
        int(_ONES[packed[start : start + (1 << 20)]].sum())
        for start in range(0, len(packed), 1 << 20)
    )


def read_subset(paths: Sequence[str | Path], manifest: Manifest, cache: Path) -> Bits:
    """Reads keep-lists as one subset; samples of weight 0 are not in it.

    Raises:
        ValueError: a list is missing, is none, or names what the pool does not have.
    """
    selection = Selection.compile(paths, manifest, cache, 0, LossWeights())
    member = np.zeros(manifest.num_samples, dtype=bool)
    starts = np.concatenate([[0], np.cumsum(manifest.counts)])
    first_epoch = np.array(0)  # any other lists the same samples
    counts = selection.counts.at(0, np.arange(len(manifest.counts)))
    for shard in np.flatnonzero(counts).tolist():
        ordinals = np.arange(int(counts[shard]))
        indices, weights = selection.resolve(first_epoch, np.array(shard), ordinals)
        member[starts[shard] + indices[weights > 0]] = True
    return Bits(int(member.sum()), np.packbits(member), selection.fingerprint)


def whole_pool(manifest: Manifest) -> Bits:
    """Returns the subset of all samples."""
    member = np.ones(manifest.num_samples, dtype=bool)
    return Bits(manifest.num_samples, np.packbits(member), manifest.fingerprint)


def sizes_of_random(sizes: Sequence[int], pool: int) -> dict[int, int | None]:
    """Returns for each size that of its random subset; sizes within 0.5% have the same one.

    None: the subset is as large as the pool, and is compared with all of it.
    """
    shared: dict[int, int | None] = {}
    group: list[int] = []
    for size in [*sorted(set(sizes)), None]:
        if group and (size is None or size > group[0] * (1 + EQUAL_SIZES)):
            middle = (group[0] + group[-1]) // 2
            is_pool = middle >= pool * (1 - EQUAL_SIZES)
            shared |= dict.fromkeys(group, None if is_pool else middle)
            group = []
        if size is not None:
            group.append(size)
    return shared


def write_random(path: Path, manifest: Manifest, pool: Bits, size: int, seed: int) -> None:
    """Writes the keep-list of a random subset of the pool, of exactly `size` samples."""
    names = manifest.urls.names()
    twice = {
        name for name, num in zip(*np.unique(names, return_counts=True), strict=True) if num > 1
    }
    schema: Any = pa.schema([("shard", pa.string()), ("index", pa.int64())])
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, pq.ParquetWriter(part, schema) as writer:
        for shard, indices in draw(manifest, pool, size, seed):
            name = manifest.urls[shard] if names[shard] in twice else names[shard]
            columns = {"shard": [name] * len(indices), "index": indices}
            writer.write_table(pa.table(columns, schema=schema))


def draw(manifest: Manifest, pool: Bits, size: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (shard, indices) of the `size` samples of the pool with the smallest hashes."""
    assert 0 < size <= pool.size, (size, pool.size)
    shift = np.uint64(64 - BITS_OF_A_BIN)
    histogram = np.zeros(1 << BITS_OF_A_BIN, dtype=np.int64)
    for _, _, hashes in _hashes(manifest, pool, seed):
        histogram += np.bincount(hashes >> shift, minlength=len(histogram))
    filled = np.cumsum(histogram)
    last = int(np.searchsorted(filled, size))  # the bin in which the draw ends
    missing = size - int(filled[last] - histogram[last])
    rows = [
        (int(value), shard, int(index))
        for shard, indices, hashes in _hashes(manifest, pool, seed)
        for value, index in zip(*_in_bin(hashes, indices, last, shift), strict=True)
    ]
    end = sorted(rows)[missing - 1]  # equal hashes are taken in the order of the shards
    for shard, indices, hashes in _hashes(manifest, pool, seed):
        limit = np.uint64(end[0])
        tied = (hashes == limit) & ((shard < end[1]) | ((shard == end[1]) & (indices <= end[2])))
        taken = (hashes < limit) | tied
        if taken.any():
            yield shard, indices[taken]


def _in_bin(
    hashes: np.ndarray, indices: np.ndarray, number: int, shift: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    inside = (hashes >> shift) == number
    return hashes[inside], indices[inside]


def _hashes(
    manifest: Manifest, pool: Bits, seed: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (shard, indices in the pool, their hashes) of every shard that has any."""
    names, start = manifest.urls.names(), 0
    for shard, num in enumerate(manifest.counts.tolist()):
        indices = np.flatnonzero(pool.of_shard(start, start + num))
        start += num
        if len(indices):
            source = manifest.sources[int(manifest.source_ids[shard])]
            yield shard, indices, mix(indices, seeded(seed, "random subset", source, names[shard]))
