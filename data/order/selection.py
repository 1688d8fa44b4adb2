"""Keep-lists: which samples of which shards are used, and how much each counts.

In: parquet files with `shard` (a tar's file name, or its address), `index` (the sample's number in
the tar) and optionally `weight` and `key`. Out: counts for the plan, and for a kept sample's
ordinal the number in the file. The lists are compiled once into memory-mapped arrays in the cache,
so that nothing in memory grows with samples; no tar is rewritten.
"""

import contextlib
import fcntl
import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import remove_parts, whole_folder
from ..shards.manifest import Manifest
from .counts import EpochCounts, FixedCounts
from .draws import DrawnCounts, Draws, write_sums
from .keep_lists import WeightPolicy, compile_lists

# Part of the name of a compiled folder: raise it when the format of its files changes.
VERSION = 1


# Numbers of drawn rows that a process keeps: 32 MiB.
ROWS_KEPT = 1 << 23


@dataclass(frozen=True)
class RepeatWeights(WeightPolicy):
    """A weight is the expected number of times a sample comes in an epoch.

    2.3 is two or three times, the same in every epoch: it depends on the seed, the shard's file
    name and the sample's index.
    """

    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.floor(weights + draws).astype(np.int64)


@dataclass(frozen=True)
class LossWeights(WeightPolicy):
    """The sample comes once an epoch, and batches have its `weight`."""

    keeps_weights = True
    max_weight = float(np.finfo(np.float32).max)

    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.ones(len(weights), dtype=np.int64)


@dataclass(frozen=True)
class Redrawn(WeightPolicy):
    """A weight is the expected number of times a sample comes, decided anew in every epoch.

    2.3 is two or three times: three in some three of ten epochs. An epoch of a source has the same
    number of samples as any other, its sum of weights; see `draws`. The draw is a hash of the
    sample's key, the seed and the epoch. Lists whose column `key` has the keys of batches draw the
    same samples after re-sharding; without the column, the shard's file name and the sample's index
    stand in for it. MetaCLIP's online balancing (Xu et al., 2023) and the probabilities of DynamiCS
    (2026) are such weights.
    """

    keeps_weights = True
    keeps_keys = True

    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.ones(len(weights), dtype=np.int64)

    def complete(self, folder: Path, manifest: Manifest) -> None:
        if not (folder / "weights.npy").exists():
            raise ValueError(
                "data.keep_weights is Redrawn, and the keep-lists have no column weight; write one "
                "(counterpoint curate does, for curations that give weights), or leave "
                "data.keep_weights out"
            )
        write_sums(folder, manifest.source_ids)
        if not Draws(folder, 0).totals.any():
            raise ValueError("the weights of the keep-lists round to no sample at all; raise them")


class Selection:
    """A compiled keep-list.

    Args:
        folder: the folder that `compile` wrote.

    Attributes:
        counts: samples in an epoch of each shard of the manifest.
        fingerprint: hexadecimal; of the samples kept, their times and weights, not of how the lists
            were sorted or split into files.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._offsets: np.ndarray = np.load(self.folder / "offsets.npy", mmap_mode="r")
        self._indices: np.ndarray = np.load(self.folder / "indices.npy", mmap_mode="r")
        weights = self.folder / "weights.npy"
        self._weights = np.load(weights, mmap_mode="r") if weights.exists() else None
        self.counts: EpochCounts = FixedCounts(np.diff(self._offsets))
        self.fingerprint = (self.folder / "fingerprint").read_text()

    def __reduce__(self) -> tuple[type["Selection"], tuple[Path]]:
        # A pickled memory map would hold all its numbers.
        return Selection, (self.folder,)

    @property
    def has_weights(self) -> bool:
        """Whether batches get weights."""
        return self._weights is not None

    def listed(self) -> "Selection":
        """Returns the list with each sample as often in any epoch, whatever is drawn."""
        return self

    def resolve(
        self, epochs: np.ndarray, shards: np.ndarray, ordinals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Resolves ordinals among the kept samples.

        Args:
            epochs: int64 [n] or a number.
            shards: index into the manifest, int64 [n] or a number.
            ordinals: 0..count-1, where count is that of the shard in the epoch, int64 [n] or a
                number.

        Returns:
            The samples' numbers in their tars, int64 [n], and their weights, float32 [n].
        """
        shards, ordinals = np.asarray(shards), np.asarray(ordinals)
        counts = self.counts.at(0, shards)
        assert np.all((ordinals >= 0) & (ordinals < counts)), (shards, ordinals)
        rows = self._offsets[shards] + ordinals
        indices = np.asarray(self._indices[rows], dtype=np.int64)
        if self._weights is None:
            return indices, np.ones(indices.shape, dtype=np.float32)
        return indices, np.asarray(self._weights[rows])

    def keys(self, shard: int, ordinals: np.ndarray) -> np.ndarray:
        """Returns the list's keys of kept samples of a shard, int64 [n]; of a policy with keys."""
        keys = np.load(self.folder / "keys.npy", mmap_mode="r")
        return np.asarray(keys[self._offsets[shard] + ordinals])

    @classmethod
    def compile(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        manifest: Manifest,
        folder: str | os.PathLike[str],
        seed: int,
        policy: WeightPolicy | None = None,
    ) -> "Selection":
        """Compiles keep-lists for a manifest, or opens the compiled ones.

        Several processes may call it at once: one compiles, the others wait.

        Args:
            paths: parquet files; together they are one list.
            manifest: the shards that the lists name.
            folder: the cache; the result is a folder in it, named after the files and the manifest.
            seed: seed of the rounding of `RepeatWeights` and of the draws of `Redrawn`.
            policy: how weights act; `RepeatWeights` by default.

        Raises:
            ValueError: a file is missing, is no keep-list, names an unknown shard or sample, or a
                sample twice; or nothing is kept.
        """
        files = [Path(path) for path in paths]
        policy = policy or RepeatWeights()
        folder = Path(folder)
        stamp = _stamp(files, manifest, seed, policy)
        target = folder / stamp
        # A complete folder is opened without the lock, which may belong to another user.
        if not target.is_dir():
            with _locked(folder, f".{stamp}.lock"):
                if not target.is_dir():
                    remove_parts(folder, stamp)
                    with whole_folder(target) as part:
                        compile_lists(files, manifest, part, policy, seed)
        return RedrawnSelection(target, seed) if isinstance(policy, Redrawn) else cls(target)


class RedrawnSelection(Selection):
    """A compiled keep-list whose weights are drawn anew in each epoch.

    Args:
        folder: the folder that `compile` wrote for `Redrawn`.
        seed: seed of the draws.
    """

    def __init__(self, folder: str | os.PathLike[str], seed: int):
        super().__init__(folder)
        self.draws = Draws(self.folder, seed)
        self.counts: EpochCounts = DrawnCounts(self.draws)
        self._rows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._num_kept = 0

    def __reduce__(self) -> tuple[type[Selection], tuple[Any, ...]]:
        return RedrawnSelection, (self.folder, self.draws.seed)

    @property
    def has_weights(self) -> bool:
        return False

    def listed(self) -> Selection:
        return Selection(self.folder)

    def resolve(
        self, epochs: np.ndarray, shards: np.ndarray, ordinals: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        epochs, shards, ordinals = np.broadcast_arrays(epochs, shards, ordinals)
        places = zip(epochs.flat, shards.flat, ordinals.flat, strict=True)
        rows = [self._drawn(int(epoch), int(shard))[ordinal] for epoch, shard, ordinal in places]
        rows = self._offsets[shards] + np.array(rows, dtype=np.int64).reshape(shards.shape)
        indices = np.asarray(self._indices[rows], dtype=np.int64)
        return indices, np.ones(indices.shape, dtype=np.float32)

    def _drawn(self, epoch: int, shard: int) -> np.ndarray:
        """Returns the listed rows of a shard as often as they come in an epoch, int32 [count]."""
        place = (epoch, shard)
        if place not in self._rows:
            times = self.draws.times(shard, epoch)
            self._rows[place] = np.repeat(np.arange(len(times), dtype=np.int32), times)
            self._num_kept += len(self._rows[place])
            while self._num_kept > ROWS_KEPT and len(self._rows) > 1:
                self._num_kept -= len(self._rows.popitem(last=False)[1])
        self._rows.move_to_end(place)
        return self._rows[place]


@contextlib.contextmanager
def _locked(folder: Path, name: str) -> Iterator[None]:
    """Makes the folder and waits for the lock of this name in it."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / name, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise ValueError(
                f"the folder '{folder}' for the compiled keep-list cannot be made or written "
                f"({error.strerror}); copy the keep-list to a folder that can be written"
            ) from error
        yield


def _stamp(files: Sequence[Path], manifest: Manifest, seed: int, policy: WeightPolicy) -> str:
    """Returns the name of the result, which changes with all that the result depends on."""
    # Weights that are kept are not rounded: the seed changes nothing of the files.
    seed_text = "" if policy.keeps_weights else seed
    parts = [f"{VERSION} {seed_text} {policy!r} {manifest.fingerprint}"]
    for path in files:
        try:
            stat = path.stat()
        except OSError as error:
            raise ValueError(
                f"the keep-list '{path}' cannot be read ({error.strerror}); give the path of a "
                "parquet file with the columns shard and index"
            ) from error
        parts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    if not files:
        raise ValueError("no keep-list given; name at least one parquet file")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
