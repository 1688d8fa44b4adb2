"""Keeps samples by membership: sources, languages, clusters, keys of a list."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ...base import Columns, Filter, State
from ...text_files import read_text


@dataclass(frozen=True)
class Where(Filter):
    """Keeps samples whose column has one of certain values.

    Args:
        column: the column, such as `source`, `language` or `key`.
        values: the values.
        file: a file with the values instead: text with one a line, or parquet with a column of
            the same name, such as the `keep.parquet` of another curation for `key`.
        keep: those that are listed, or the others.

    Raises:
        ValueError: there are neither values nor a file, or both, or they do not fit the column.
    """

    column: str
    values: list[str] | list[int] | None = None
    file: Path | None = None
    keep: Literal["listed", "others"] = "listed"

    def __post_init__(self):
        if (self.values is None) == (self.file is None):
            raise ValueError(
                f"Where of {self.column} takes values or file, one of them; write null for one"
            )

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column."""
        return (self.column,)

    def files(self) -> list[Path]:
        return [self.file] if self.file is not None else []

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        column = rows.column(self.column)
        values = self._values(column.type)
        if pa.types.is_integer(column.type):  # they are sorted, and may be many (keys)
            numbers, sorted_values = column.to_numpy(), values.to_numpy()
            at = np.searchsorted(sorted_values, numbers).clip(max=max(len(values) - 1, 0))
            listed = sorted_values[at] == numbers if len(values) else np.zeros(len(numbers), bool)
        else:
            options = pc.SetLookupOptions(values)
            listed = pc.call_function("is_in", [column], options).to_numpy(zero_copy_only=False)
        return {"keep": listed if self.keep == "listed" else ~listed}

    def _values(self, kind: pa.DataType) -> pa.Array:
        """Returns the values, sorted if they are integers."""
        values = self.values
        try:
            if values is None:
                assert self.file is not None
                return _read(self.file, self.file.stat().st_mtime_ns, self.column, kind)
            return _sorted(pa.array(values).cast(kind))
        except (
            pa.ArrowInvalid,
            pa.ArrowNotImplementedError,
            OverflowError,
            OSError,
            KeyError,
        ) as error:
            given = values if self.file is None else f"the file '{self.file}'"
            raise ValueError(
                f"Where: {given} does not fit the column {self.column} of type {kind} ({error})"
            ) from error


@functools.lru_cache(maxsize=4)
def _read(path: Path, changed: int, column: str, kind: pa.DataType) -> pa.Array:
    """Returns the values of a file; `changed` is when it did."""
    if path.suffix == ".parquet":
        values = pq.read_table(path, columns=[column])[column].drop_null()
        return _sorted(values.combine_chunks().cast(kind))
    lines = read_text(path).splitlines()
    return _sorted(pa.array([line for line in lines if line.strip()]).cast(kind))


def _sorted(values: pa.Array) -> pa.Array:
    return values.sort() if pa.types.is_integer(values.type) else values
