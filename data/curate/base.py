"""The contract of filters: what decides which samples of a pool are kept, and how much each counts.

In: rows of the score table and of stores, as record batches. Out: columns, of which `keep` and
`weight` make the keep-list and the others serve later filters. All functions are pure, and nothing
may depend on the order of rows or on where shards begin: a curation gives the same samples after
re-sharding, with any number of workers, and after a restart.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

KEEP, WEIGHT = "keep", "weight"
# Keep-lists have float32.
MAX_WEIGHT = float(np.finfo(np.float32).max)

State = dict[str, np.ndarray]
Columns = dict[str, np.ndarray | pa.Array]


class Filter(ABC):
    """One filter, a frozen dataclass whose fields are its settings.

    Rows that earlier filters have left out, samples that cannot be used, and rows in which one of
    `reads` is empty never reach it; the latter two are left out.

    Attributes:
        reads: columns it needs: of the score table (`caption`), of a store (`STORE.COLUMN`, such as
            `clip.image`), or written by an earlier filter.
        writes: columns it gives: `keep` (bool), `weight` (float; those of several filters are
            multiplied, and 0 leaves a row out), and others by any name.

    Tasks run in several processes, and each gets a copy of the filter: what takes time to make (an
    automaton, a model) belongs into a function with a cache.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...] = (KEEP,)

    @property
    def reduces(self) -> bool:
        """Whether it needs a number of all rows (`partial`)."""
        return type(self).partial is not Filter.partial

    def files(self) -> Sequence[Path]:
        """Returns the files that its settings name; other content makes another filter of it."""
        return ()

    def for_pool(self, num_samples: int) -> "Filter":
        """Returns the filter for a pool of so many samples: itself, unless a setting is a share."""
        return self

    def partial(self, rows: pa.RecordBatch) -> State:
        """Returns what these rows add to the global quantity.

        Arrays for which `merge` gives the same result in any order: integers, as a rule (counts,
        histograms, fixed-point sums).
        """
        raise NotImplementedError

    def merge(self, one: State, other: State) -> State:
        """Returns two parts as one; adds arrays up by default."""
        return {name: one[name] + other[name] for name in one}

    def finish(self, total: State) -> State:
        """Returns what `apply` is given of the merged parts, such as a threshold.

        Without any row there is no total, and `apply` is never called.
        """
        return total

    @abstractmethod
    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        """Returns the columns of `writes`, one value a row.

        Args:
            rows: the columns `key` and `reads`.
            state: of `finish`; empty without a `partial`.
        """

    def table(self, state: State) -> pa.Table | None:
        """Returns what users want to read of the global quantity, such as counts by concept.

        The runner writes it to `OUT/tables/NAME.parquet`. Not called without any row.
        """
        return None


class GroupFilter(Filter):
    """A filter that sees certain rows together: duplicates, clusters, random batches.

    Groups have to fit into memory; the pool does not.
    """

    @abstractmethod
    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        """Returns the group of each row, int64 [n], or several groups of each, int64 [n, m].

        Of several groups, `keep` is whether all of them keep the row; there is no other column.
        Between the tasks a row is written to the disk as often.
        """

    def parts(self) -> "Sequence[GroupFilter]":
        """Returns filters, each with some of the groups, that all have to keep a row.

        One after the other sees the same rows, and their files lie on the disk one at a time.
        """
        return (self,)

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        raise TypeError(f"{type(self).__name__} works on groups (apply_groups)")

    @abstractmethod
    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        """Returns the columns of `writes`, one value a row.

        Args:
            rows: `key` and `reads` of whole groups; sorted by group, then by key.
            starts: where groups start, and the number of rows; int64 [groups + 1].
            state: of `finish`; empty without a `partial`.
        """


def checked(of: Filter, given: Columns, num_rows: int) -> dict[str, pa.Array]:
    """Returns what a filter gave as arrays.

    Raises:
        ValueError: a column is missing or of another length, `keep` is empty in a row, or a weight
            is no number from 0 up.
    """
    columns = {}
    for name in of.writes:
        if name not in given:
            raise ValueError(f"{of!r} gives no column {name}, which it says that it writes")
        values = given[name]
        column: Any = values if isinstance(values, pa.Array) else pa.array(values)
        if len(column) != num_rows:
            raise ValueError(f"{of!r} gives {len(column)} values of {name} for {num_rows} rows")
        if name == KEEP and column.null_count:
            raise ValueError(f"{of!r} leaves keep empty in {column.null_count} rows")
        if name == WEIGHT:
            weights = np.asarray(column, dtype=np.float64)
            wrong = weights[~((weights >= 0) & (weights <= MAX_WEIGHT))]
            if len(wrong):
                raise ValueError(
                    f"{of!r} gives {len(wrong):,} weights such as {wrong[0]:g}; a weight is a "
                    "number from 0 up, how often the sample shall come in an epoch"
                )
        columns[name] = column
    return columns


def numbers(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of numbers, or of true and false, [n].

    Raises:
        ValueError: it holds something else.
    """
    kind = rows.column(name).type
    if not (_is_number(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"{name} holds {kind}; name a column with one number a row")
    return rows.column(name).to_numpy(zero_copy_only=False)


def integers(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns a column of integers, such as hashes and numbers of clusters, [n].

    Raises:
        ValueError: it holds something else.
    """
    kind = rows.column(name).type
    if not pa.types.is_integer(kind):
        raise ValueError(f"{name} holds {kind}; name a column with one integer a row")
    return rows.column(name).to_numpy(zero_copy_only=False)


def texts(rows: pa.RecordBatch, name: str) -> list[str]:
    """Returns a column of texts.

    Raises:
        ValueError: it holds something else.
    """
    kind = rows.column(name).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise ValueError(f"{name} holds {kind}; name a column with one text a row")
    return rows.column(name).to_pylist()


def lists(rows: pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column of lists of numbers: all of them, and how many each row has, int64 [n].

    Raises:
        ValueError: it holds something else.
    """
    column = rows.column(name)
    if not (pa.types.is_list(column.type) and _is_number(column.type.value_type)):
        raise ValueError(f"{name} holds {column.type}; name a column with a list of numbers a row")
    sizes = column.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return column.flatten().to_numpy(zero_copy_only=False), sizes


def vectors(rows: pa.RecordBatch, name: str, normalize: bool = True) -> np.ndarray:
    """Returns a column of vectors, float32 [n, d]; of length one unless told otherwise.

    Raises:
        ValueError: it holds something else.
    """
    column = rows.column(name)
    if not (pa.types.is_fixed_size_list(column.type) and _is_number(column.type.value_type)):
        raise ValueError(f"{name} holds {column.type}; name a store's column with embeddings")
    flat = column.flatten().to_numpy(zero_copy_only=False)
    values = flat.reshape(len(column), -1).astype(np.float32)
    if normalize:
        values /= np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-12)
    return values


def vector_column(values: np.ndarray) -> pa.FixedSizeListArray:
    """Returns vectors [n, d] as a column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def select(rows: pa.RecordBatch, mask: np.ndarray) -> pa.RecordBatch:
    """Returns the rows under a mask [n]."""
    return rows.filter(pa.array(mask))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
