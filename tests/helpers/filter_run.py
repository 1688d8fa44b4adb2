"""A filter over rows in memory, cut and merged in any order, as the runner may."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from counterpoint.data.curate.base import Filter, State


def batch_of(columns: Mapping[str, Any], keys: Any = None) -> pa.RecordBatch:
    """Returns rows with a key each (their numbers, scattered, by default)."""
    size = len(next(iter(columns.values())))
    keys = np.arange(size) * 7919 - 10**6 if keys is None else keys
    return pa.RecordBatch.from_pydict({"key": np.asarray(keys, dtype=np.int64), **columns})


def state_of(each: Filter, rows: pa.RecordBatch, pieces: int = 1, seed: int = 0) -> State:
    """Returns what `apply` is given, the rows cut at random and the parts merged in any order."""
    if not each.reduces:
        return {}
    rng = np.random.default_rng(seed)
    rows = rows.take(pa.array(rng.permutation(rows.num_rows)))
    parts = [each.partial(part) for part in cut(rows, pieces, rng) if part.num_rows]
    while len(parts) > 1:
        one, other = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(each.merge(one, other))
    return each.finish(parts[0])


def run_filter(
    each: Filter, rows: pa.RecordBatch, pieces: int = 1, seed: int = 0
) -> dict[str, list[Any]]:
    """Returns a filter's columns as lists, in the order of the rows."""
    state = state_of(each, rows, pieces, seed)
    parts = [p for p in cut(rows, pieces, np.random.default_rng(seed)) if p.num_rows]
    given = [each.apply(part, state) for part in parts]
    assert all(set(part) == set(each.writes) for part in given)
    columns = {name: [pa.array(part[name]) for part in given] for name in each.writes}
    return {name: pa.concat_arrays(arrays).to_pylist() for name, arrays in columns.items()}


def cut(rows: pa.RecordBatch, pieces: int, rng: np.random.Generator) -> list[pa.RecordBatch]:
    """Returns the rows in so many parts of random sizes."""
    at = np.sort(rng.integers(0, rows.num_rows + 1, pieces - 1))
    ends = [0, *at.tolist(), rows.num_rows]
    return [rows.slice(a, b - a) for a, b in itertools.pairwise(ends)]
