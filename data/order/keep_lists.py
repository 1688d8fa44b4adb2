"""Compiles keep-lists in three passes over memory-mapped files.

In: parquet files in any order. Out: `offsets.npy` int64 [shards + 1], `indices.npy` int32 [kept],
ascending within a shard, `weights.npy` float32 [kept] and `keys.npy` int64 [kept] where the policy
needs them later, and a `fingerprint`. Memory holds a batch, a span of shards and some numbers a
shard: counting first and then writing every row among its shard's rows sorts a list of any size
without loading it.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..hashing import mix, seeded
from ..shards.manifest import Manifest
from ..urls import shown
from .keep_files import open_list

ROWS_A_BATCH = 1 << 17
# Samples sorted at once (and at least one shard): some 25 MB.
ROWS_A_SPAN = 1 << 19


@dataclass(frozen=True)
class Rows:
    """Some rows of a list: shards, indices and keys int64 [n], weights float64 [n]."""

    shards: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    keys: np.ndarray


class WeightPolicy(ABC):
    """How the weights of samples act.

    Attributes:
        keeps_weights: whether the compiled list holds weights, each sample once; else a sample is
            repeated by its `times`.
        keeps_keys: whether it holds keys.
        max_weight: the highest that a sample may have.
    """

    keeps_weights = False
    keeps_keys = False
    max_weight = float(1 << 20)

    @abstractmethod
    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Returns how often each sample comes in an epoch, int64 [n].

        Args:
            weights: float64 [n], 0 or more.
            draws: a fixed number of each sample, float64 [n], evenly spread over [0, 1).
        """

    def complete(self, folder: Path, manifest: Manifest) -> None:
        """Adds files of its own to the compiled arrays; raises a ValueError if they do not do."""
        return


@dataclass(frozen=True)
class Arrays:
    """The compiled arrays: indices int32 [kept], weights float32 [kept], keys int64 [kept]."""

    indices: np.memmap
    weights: np.memmap | None
    keys: np.memmap | None

    def all(self) -> list[np.memmap]:
        """Returns the arrays that there are."""
        return [each for each in (self.indices, self.weights, self.keys) if each is not None]


def compile_lists(
    paths: Sequence[Path], manifest: Manifest, folder: Path, policy: WeightPolicy, seed: int
) -> None:
    """Writes the arrays.

    Args:
        paths: the keep-lists.
        manifest: names and counts of the shards.
        folder: an empty folder for the arrays.
        policy: how weights act.
        seed: seed of the samples' draws.

    Raises:
        ValueError: see `Selection.compile`.
    """
    lists = KeepLists(paths, manifest, policy.keeps_keys, policy.max_weight)
    offsets = lists.count()
    if not offsets[-1]:
        raise ValueError(f"the keep-lists {_quoted(paths)} keep no sample; check what wrote them")
    kept = int(offsets[-1])
    arrays = Arrays(
        create(folder / "indices.npy", np.int32, kept),
        create(folder / "weights.npy", np.float32, kept) if lists.has_weights else None,
        create(folder / "keys.npy", np.int64, kept) if policy.keeps_keys else None,
    )
    lists.place(offsets, arrays)
    for span in _spans(offsets):
        lists.sort(span, offsets, arrays)
    if arrays.weights is not None and not policy.keeps_weights:
        offsets, indices = _repeat(
            folder, offsets, arrays.indices, arrays.weights, lists.names, policy, seed
        )
        arrays = Arrays(indices, None, None)
    np.save(folder / "offsets.npy", offsets)
    policy.complete(folder, manifest)
    state = hashlib.sha256(offsets.astype("<i8").tobytes())
    for array in arrays.all():
        array.flush()
        for first in range(0, len(array), ROWS_A_SPAN):
            state.update(array[first : first + ROWS_A_SPAN].tobytes())
    (folder / "fingerprint").write_text(state.hexdigest()[:32])


class KeepLists:
    """Parquet files that name samples of a manifest's shards.

    Args:
        paths: the files.
        manifest: the shards.
        reads_keys: whether keys are needed; those of lists without any are hashes of the shard's
            file name and the index.
        max_weight: the highest that a sample may have.

    Attributes:
        names: file name of each shard.
        has_weights: whether every list has a `weight`.
        has_keys: whether keys are needed and every list has a `key`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        manifest: Manifest,
        reads_keys: bool = False,
        max_weight: float = WeightPolicy.max_weight,
    ):
        self.paths = paths
        self.max_weight = max_weight
        self.manifest = manifest
        self.names = manifest.urls.names()
        self._shards: dict[str, list[int]] = {}
        for shard, name in enumerate(self.names):
            self._shards.setdefault(name, []).append(shard)
        self._shard_of: dict[str, int] = {}
        self.has_weights = self._all_have("weight")
        self.has_keys = reads_keys and self._all_have("key")
        for path in paths if self.has_keys else ():
            if (kind := open_list(path).schema_arrow.field("key").type) != pa.int64():
                raise ValueError(
                    f"the column key of the keep-list '{path}' is {kind}; it holds the int64 keys "
                    "of batches, as the lists of counterpoint curate do: rename or drop it"
                )
        # Of lists without keys.
        self._seeds = np.empty(0, dtype=np.uint64)
        if reads_keys and not self.has_keys:
            self._seeds = np.concatenate([seeded("keep", name) for name in self.names])

    def _all_have(self, column: str) -> bool:
        """Returns whether all lists have a column; raises a ValueError if some only."""
        have = [column in open_list(path).schema_arrow.names for path in self.paths]
        if any(have) and not all(have):
            without = self.paths[have.index(False)]
            raise ValueError(
                f"the keep-list '{without}' has no column {column}, others have; give all of them "
                "one, or none"
            )
        return all(have)

    def count(self) -> np.ndarray:
        """Checks every row and returns where each shard's rows start, int64 [shards + 1]."""
        totals = np.zeros(len(self.names), dtype=np.int64)
        for path in self.paths:
            # Keys need no check, and reading them takes time.
            for rows in self.rows(path, with_keys=False):
                self._check(path, rows.shards, rows.indices, rows.weights)
                totals += np.bincount(rows.shards, minlength=len(totals))
        return np.concatenate([[0], np.cumsum(totals)])

    def place(self, offsets: np.ndarray, arrays: Arrays) -> None:
        """Writes every row among the rows of its shard."""
        free = offsets[:-1].copy()
        for path in self.paths:
            for rows in self.rows(path, with_keys=self.has_keys):
                columns = [
                    (arrays.indices, rows.indices),
                    (arrays.weights, rows.weights),
                    (arrays.keys, rows.keys),
                ]
                shards = rows.shards
                # Tools write lists by shard: then nothing is sorted.
                order = None
                if (shards[1:] < shards[:-1]).any():
                    order = np.argsort(shards, kind="stable")
                    shards = shards[order]
                firsts = np.flatnonzero(np.diff(shards, prepend=-1))
                sizes = np.diff(firsts, append=len(shards))
                groups = shards[firsts]
                targets: Any = np.arange(len(shards)) + np.repeat(free[groups] - firsts, sizes)
                # Without gaps, a plain copy takes half the time.
                if len(shards) and targets[-1] - targets[0] == len(shards) - 1:
                    targets = slice(targets[0], targets[-1] + 1)
                free[groups] += sizes
                for array, values in columns:
                    if array is not None:
                        array[targets] = values if order is None else values[order]
        assert np.array_equal(free, offsets[1:]), "a keep-list changed while it was read"

    def sort(self, span: tuple[int, int], offsets: np.ndarray, arrays: Arrays) -> None:
        """Sorts the rows of each shard of a span in place, and refuses duplicates."""
        rows = slice(offsets[span[0]], offsets[span[1]])
        shards = np.repeat(np.arange(*span), np.diff(offsets[span[0] : span[1] + 1]))
        keys = shards << 32 | arrays.indices[rows]
        if (keys[1:] <= keys[:-1]).any():
            order = np.argsort(keys)
            keys = keys[order]
            for array in arrays.all():
                array[rows] = array[rows][order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            shard, index = divmod(int(keys[twice[0]]), 1 << 32)
            raise ValueError(
                f"the keep-lists {_quoted(self.paths)} name sample {index} of the shard "
                f"'{shown(self.manifest.urls[shard])}' twice; keep one row and give it a weight "
                "of 2"
            )

    def rows(self, path: Path, with_keys: bool) -> Iterator[Rows]:
        """Yields the rows of a file, batch by batch; keys if asked for, or if lists have none."""
        columns = ["shard", "index"] + ["weight"] * self.has_weights + ["key"] * with_keys
        # Without the read-ahead of whole row groups, and with a buffer in place of whole columns of
        # one, memory stays at a batch and its pages. Names read as codes are looked up once each.
        file = open_list(path, pre_buffer=False, buffer_size=1 << 20, read_dictionary=["shard"])
        for batch in file.iter_batches(ROWS_A_BATCH, columns=columns):
            if any(column.null_count for column in batch.columns):
                raise ValueError(f"the keep-list '{path}' has empty cells; fill or drop these rows")
            named = batch.column("shard")
            if not isinstance(named, pa.DictionaryArray):
                named = named.dictionary_encode()
            texts = named.dictionary.to_pylist()
            for name in set(texts).difference(self._shard_of):
                self._shard_of[name] = self._find(name, path)
            by_code = np.fromiter(map(self._shard_of.__getitem__, texts), np.int64, len(texts))
            shards = by_code[named.indices.to_numpy()]
            indices = pc.cast(batch.column("index"), pa.int64()).to_numpy()
            weights = keys = np.ones(len(shards))
            if self.has_weights:
                weights = pc.cast(batch.column("weight"), pa.float64()).to_numpy()
            if with_keys:
                keys = batch.column("key").to_numpy()
            elif len(self._seeds):
                keys = mix(indices, self._seeds[shards]).view(np.int64)
            yield Rows(shards, indices, weights, keys)

    def _find(self, name: str, path: Path) -> int:
        """Returns the shard whose address ends in `name`, at a slash."""
        hits = self._shards.get(name.rpartition("/")[2], [])
        urls = self.manifest.urls
        if "/" in name:
            hits = [
                s
                for s in hits
                if name in (urls[s], shown(urls[s])) or shown(urls[s]).endswith("/" + name)
            ]
        if len(hits) > 1:
            raise ValueError(
                f"the keep-list '{path}' names the shard '{name}', and the manifest has "
                f"{len(hits)} of that name ('{shown(urls[hits[0]])}', '{shown(urls[hits[1]])}'); "
                "write the address of the one that is meant"
            )
        if not hits:
            raise ValueError(
                f"the keep-list '{path}' names the shard '{name}', which the manifest does not "
                f"have; its shards are named like '{self.names[0]}'"
            )
        return hits[0]

    def _check(
        self, path: Path, shards: np.ndarray, indices: np.ndarray, weights: np.ndarray
    ) -> None:
        """Raises a ValueError for the first sample that no shard has, or the first bad weight."""
        outside = np.flatnonzero((indices < 0) | (indices >= self.manifest.counts[shards]))
        if len(outside):
            shard, index = int(shards[outside[0]]), int(indices[outside[0]])
            raise ValueError(
                f"the keep-list '{path}' names sample {index} of the shard "
                f"'{shown(self.manifest.urls[shard])}', which has "
                f"{self.manifest.counts[shard]} (the first is 0); write the list for these shards"
            )
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(wrong):
            raise ValueError(
                f"the keep-list '{path}' has the weight {weights[wrong[0]]}; weights are 0 or more"
            )
        if (highest := weights.max(initial=0)) > self.max_weight:
            raise ValueError(
                f"the keep-list '{path}' has the weight {highest:g}; more than "
                f"{self.max_weight:,.0f} are too many: scale them down"
            )


def create(path: Path, dtype: Any, length: int) -> np.memmap:
    """Creates a memory-mapped array; a full disk is an error here, not a crash when writing."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(length,))
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise ValueError(
                f"the folder '{path.parent}' cannot take the {array.nbytes} bytes of a compiled "
                f"keep-list ({error.strerror}); make room, or choose another folder"
            ) from error
    return array


def _spans(offsets: np.ndarray) -> list[tuple[int, int]]:
    """Cuts the shards into spans (first, one past the last) of about `ROWS_A_SPAN` rows."""
    goals = np.arange(ROWS_A_SPAN, offsets[-1] + ROWS_A_SPAN, ROWS_A_SPAN)
    ends = np.unique(np.searchsorted(offsets, goals).clip(1, len(offsets) - 1))
    ends[-1] = len(offsets) - 1
    return list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))


def _repeat(
    folder: Path,
    offsets: np.ndarray,
    indices: np.ndarray,
    weights: np.ndarray,
    names: Sequence[str],
    policy: WeightPolicy,
    seed: int,
) -> tuple[np.ndarray, np.memmap]:
    """Replaces the arrays by those that repeat every index by its weight."""
    keys = np.concatenate([seeded(seed, "keep", name) for name in names])

    def times(first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(offsets[first], offsets[last])
        numbers = np.asarray(indices[rows])
        row_keys = np.repeat(keys[first:last], np.diff(offsets[first : last + 1]))
        draws = (mix(numbers, row_keys) >> np.uint64(11)) / float(1 << 53)
        return numbers, policy.times(weights[rows].astype(np.float64), draws)

    ends = np.zeros_like(offsets)
    for first, last in _spans(offsets):
        sums = np.concatenate([[0], np.cumsum(times(first, last)[1])])
        ends[first + 1 : last + 1] = (
            ends[first] + sums[offsets[first + 1 : last + 1] - offsets[first]]
        )
    if not ends[-1]:
        raise ValueError("the weights of the keep-lists round to no sample at all; raise them")
    repeated = create(folder / "repeated.npy", np.int32, int(ends[-1]))
    for first, last in _spans(offsets):
        repeated[ends[first] : ends[last]] = np.repeat(*times(first, last))
    os.replace(folder / "repeated.npy", folder / "indices.npy")
    os.unlink(folder / "weights.npy")
    return ends, repeated


def _quoted(paths: Sequence[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)
