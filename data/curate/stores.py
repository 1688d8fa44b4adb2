"""Columns of stores for the rows of a score table, joined by key.

In: the folder of a sidecar, as `counterpoint embed` and `counterpoint cluster` write it. Out: a
column with a value for each key, empty where the store has no row. Rows are looked for in the file
of the same shard; what is not there, because the pool was divided into other shards since, is
found by an index of all keys.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..hashing import text_hash
from ..sidecar import KEY
from .key_index import KeyIndex, groups_of, open_index

# Mapped, not read: an open file takes memory for its keys, if they were looked for.
MAX_OPEN = 64
INDEX = ".keys"


@dataclass(frozen=True)
class Store:
    """A sidecar's folder.

    Args:
        folder: holds SOURCE/SHARD.safetensors.

    Raises:
        ValueError: it holds none.
    """

    folder: Path

    def __post_init__(self):
        if not self.files():
            raise ValueError(
                f"'{self.folder}' is no store (it holds no SOURCE/SHARD.safetensors); write one "
                "with counterpoint embed"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what is open.
        return Store, (self.folder,)

    def files(self) -> list[Path]:
        """The files of all shards, sorted."""
        return sorted(self.folder.glob("*/*.safetensors"))

    @property
    def fingerprint(self) -> str:
        """Changes when a file does."""
        stats = ((path.relative_to(self.folder), path.stat()) for path in self.files())
        parts = [f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats]
        return f"{text_hash(self.folder.resolve(), *parts):x}"

    def read(self, source: str, stem: str, keys: np.ndarray, columns: list[str]) -> list[pa.Array]:
        """Returns columns of the rows with these keys.

        Args:
            source: of the shard that the keys are of.
            stem: its file name without `.tar`; where its rows are looked for first.
            keys: int64 [n].
            columns: names in the store.

        Raises:
            ValueError: a file is damaged, lacks a column, or has rows of another shape; or keys are
                in other files, and the index of them cannot be written.
        """
        joined = _Joined(len(keys), columns)
        path = self.folder / source / f"{stem}.safetensors"
        missing = np.arange(len(keys))
        if path.is_file():
            part = _open(path)
            rows = part.find(keys)
            joined.add(part, np.flatnonzero(rows >= 0), rows[rows >= 0])
            missing = np.flatnonzero(rows < 0)
        if len(missing):
            files, index = self._index
            places = index.find(keys[missing])
            missing, places = missing[places >= 0], places[places >= 0]
            for number, mine in groups_of(places >> 32):
                joined.add(_open(files[number]), missing[mine], places[mine] & 0xFFFFFFFF)
        return joined.arrays()

    @functools.cached_property
    def _index(self) -> tuple[list[Path], KeyIndex]:
        """The files, and where in them each key is."""
        files = self.files()
        counts = [_open(path).num_rows for path in files]
        folder = self.folder / INDEX / self.fingerprint
        try:
            return files, open_index(folder, lambda number: _open(files[number]).keys, counts)
        except OSError as error:
            raise ValueError(
                f"some samples are not in the files of '{self.folder}' that are named after their "
                f"shards, and an index of its keys cannot be written ({error.strerror}): make "
                f"'{folder.parent}' a folder that you may write to"
            ) from error


class _Part:
    """A mapped file of a store."""

    def __init__(self, path: Path):
        self.path = path
        try:
            # Not closed by a `with`: the mapping lives as long as this object.
            self._file = safe_open(str(path), framework="pt")
            self._names = set(self._file.keys())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"the store's file '{path}' is damaged ({error})") from error

    @property
    def num_rows(self) -> int:
        self._require([KEY])
        return self._file.get_slice(KEY).get_shape()[0]

    @property
    def keys(self) -> np.ndarray:
        """int64 [rows], in the file's order."""
        self._require([KEY])
        return self._file.get_tensor(KEY).numpy()

    @functools.cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.keys, kind="stable")
        return self.keys[order], order

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the row of each key, int64 [n], -1 where there is none."""
        stored, order = self._sorted
        if not len(stored):
            return np.full(len(keys), -1)
        at = np.searchsorted(stored, keys).clip(max=len(stored) - 1)
        return np.where(stored[at] == keys, order[at], -1)

    def take(self, column: str, rows: np.ndarray) -> np.ndarray:
        """Returns rows of a column, [n, ...]."""
        values = self._columns(column)[torch.from_numpy(rows)]
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()

    def _columns(self, column: str) -> Tensor:
        self._require([KEY, column])
        return self._file.get_tensor(column)

    def _require(self, columns: list[str]) -> None:
        if missing := sorted({*columns} - self._names):
            raise ValueError(
                f"the store's file '{self.path}' has no column {', '.join(missing)}; it has "
                f"{', '.join(sorted(self._names - {KEY}))}"
            )


class _Joined:
    """Columns that are filled from files."""

    def __init__(self, num_rows: int, columns: list[str]):
        self.columns = columns
        self._missing = np.ones(num_rows, dtype=bool)
        self._values: dict[str, np.ndarray] = {}

    def add(self, part: _Part, at: np.ndarray, rows: np.ndarray) -> None:
        """Puts rows of a file at places of the columns, both int64 [n]."""
        self._missing[at] = False
        for column in self.columns:
            taken = part.take(column, rows)
            shape = (len(self._missing), *taken.shape[1:])
            values = self._values.setdefault(column, np.zeros(shape, taken.dtype))
            if values.shape != shape or values.dtype != taken.dtype:
                raise ValueError(
                    f"the column '{column}' of the store's file '{part.path}' has rows of "
                    f"{taken.dtype} {list(taken.shape[1:])}, other files of {values.dtype} "
                    f"{list(values.shape[1:])}; they are of two stores"
                )
            values[at] = taken

    def arrays(self) -> list[pa.Array]:
        """Returns the columns, empty where nothing was put; of no type if nothing was at all."""
        return [
            _column(self._values[column], self._missing)
            if column in self._values
            else pa.nulls(len(self._missing))
            for column in self.columns
        ]


def _column(values: np.ndarray, missing: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values, mask=missing)
    flat = pa.array(values.reshape(-1))
    width = int(np.prod(values.shape[1:]))
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(missing))


def _open(path: Path) -> _Part:
    stat = path.stat()
    return _open_as(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=MAX_OPEN)
def _open_as(path: Path, num_bytes: int, written: int) -> _Part:
    """Opens a file, or takes the one that is open; a file that was replaced is another one."""
    return _Part(path)
