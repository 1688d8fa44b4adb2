"""How often values occur: a reduce that filters share.

In: a column of whole numbers. Out: its values with their counts, the same for any order of merging.
"""

import numpy as np

from .base import State


def counts_of(values: np.ndarray) -> State:
    """Returns the values [n] that occur, sorted, with their counts: int64 `values`, `counts`."""
    ordered = np.sort(values.astype(np.int64))
    starts = np.flatnonzero(np.append(True, np.diff(ordered) != 0)[: len(ordered)])
    return {"values": ordered[starts], "counts": np.diff(starts, append=len(ordered))}


def add_counts(one: State, other: State) -> State:
    """Returns the counts of both."""
    values = np.concatenate([one["values"], other["values"]])
    counts = np.concatenate([one["counts"], other["counts"]])
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(values[order]) != 0)[: len(order)])
    if not len(starts):
        return one
    return {"values": values[order][starts], "counts": np.add.reduceat(counts[order], starts)}
