"""Columns of stores for the rows of a score table, joined by key.

In: the folder of a sidecar, as `counterpoint embed` and `counterpoint cluster` write it. Out: a
column with a value for each key, empty where the store has no row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from safetensors import SafetensorError, safe_open

from ..hashing import text_hash
from ..sidecar import KEY


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
            ValueError: a file is damaged, or lacks a column.
        """
        found: list[pa.Array | None] = [None] * len(columns)
        for path in self._where(source, stem):
            part, at = _rows(path, keys, columns)
            for number, values in enumerate(part):
                found[number] = _join(values, at)
        return [column if column is not None else pa.nulls(len(keys)) for column in found]

    def _where(self, source: str, stem: str) -> Iterator[Path]:
        path = self.folder / source / f"{stem}.safetensors"
        if path.is_file():
            yield path


def _rows(path: Path, keys: np.ndarray, columns: list[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns columns of a file, and the row of each key in it, int64 [n]; -1: none."""
    try:
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            missing = sorted({KEY, *columns} - names)
            if missing:
                raise ValueError(
                    f"the store's file '{path}' has no column {', '.join(missing)}; it has "
                    f"{', '.join(sorted(names - {KEY}))}"
                )
            stored = file.get_tensor(KEY).numpy()
            values = [_array(file.get_tensor(column)) for column in columns]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"the store's file '{path}' is damaged ({error})") from error
    order = np.argsort(stored, kind="stable")
    at = np.searchsorted(stored, keys, sorter=order).clip(max=len(stored) - 1)
    rows = order[at] if len(stored) else np.full(len(keys), -1)
    return values, np.where(stored[rows] == keys, rows, -1) if len(stored) else rows


def _array(values: torch.Tensor) -> np.ndarray:
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()


def _join(values: np.ndarray, rows: np.ndarray) -> pa.Array:
    """Returns values [m, ...] at rows [n] as a column, empty where a row is -1."""
    missing = rows < 0
    taken = values[rows.clip(min=0)] if len(values) else np.zeros((len(rows), *values.shape[1:]))
    if taken.ndim == 1:
        return pa.array(taken, mask=missing)
    flat = pa.array(taken.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(
        flat, int(np.prod(taken.shape[1:])), mask=pa.array(missing)
    )
