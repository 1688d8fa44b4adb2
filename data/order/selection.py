"""Keep-lists: which samples of which shards are used, and how much each counts.

In: parquet files with `shard` (a tar's file name, or its address), `index` (the sample's number in
the tar) and optionally `weight`. Out: counts for the plan, and for a kept sample's ordinal the
number in the file. The lists are compiled once into memory-mapped arrays in the cache, so that
nothing in memory grows with samples; no tar is rewritten.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import remove_parts, whole_folder
from ..shards.manifest import Manifest
from .keep_lists import WeightPolicy, compile_lists

# Part of the name of a compiled folder: raise it when the format of its files changes.
VERSION = 1


@dataclass(frozen=True)
class RepeatWeights:
    """A weight is the expected number of times a sample comes in an epoch.

    2.3 is two or three times, the same in every epoch: it depends on the seed, the shard's file
    name and the sample's index.
    """

    keeps_weights = False

    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.floor(weights + draws).astype(np.int64)


@dataclass(frozen=True)
class LossWeights:
    """The sample comes once an epoch, and batches have its `weight`."""

    keeps_weights = True

    def times(self, weights: np.ndarray, draws: np.ndarray) -> np.ndarray:
        return np.ones(len(weights), dtype=np.int64)


class Selection:
    """A compiled keep-list.

    Args:
        folder: the folder that `compile` wrote.

    Attributes:
        counts: samples in an epoch of each shard of the manifest, int64 [shards].
        fingerprint: hexadecimal; of the samples kept, their times and weights, not of how the lists
            were sorted or split into files.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        self._offsets: np.ndarray = np.load(self.folder / "offsets.npy", mmap_mode="r")
        self._indices: np.ndarray = np.load(self.folder / "indices.npy", mmap_mode="r")
        weights = self.folder / "weights.npy"
        self._weights = np.load(weights, mmap_mode="r") if weights.exists() else None
        self.counts: np.ndarray = np.diff(self._offsets)
        self.fingerprint = (self.folder / "fingerprint").read_text()

    def __reduce__(self) -> tuple[type["Selection"], tuple[Path]]:
        # A pickled memory map would hold all its numbers.
        return Selection, (self.folder,)

    @property
    def has_weights(self) -> bool:
        """Whether batches get weights."""
        return self._weights is not None

    def resolve(self, shards: np.ndarray, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resolves ordinals among the kept samples.

        Args:
            shards: index into the manifest, int64 [n] or a number.
            ordinals: 0..counts[shard]-1, int64 [n] or a number.

        Returns:
            The samples' numbers in their tars, int64 [n], and their weights, float32 [n].
        """
        shards, ordinals = np.asarray(shards), np.asarray(ordinals)
        assert np.all((ordinals >= 0) & (ordinals < self.counts[shards])), (shards, ordinals)
        rows = self._offsets[shards] + ordinals
        indices = np.asarray(self._indices[rows], dtype=np.int64)
        if self._weights is None:
            return indices, np.ones(indices.shape, dtype=np.float32)
        return indices, np.asarray(self._weights[rows])

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
            seed: seed of the rounding of `RepeatWeights`.
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
        return cls(target)


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
    parts = [f"{VERSION} {seed} {policy!r} {manifest.fingerprint}"]
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
