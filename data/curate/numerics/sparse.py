"""Counts of integers of which few occur, as sorted arrays.

In: integers of a batch. Out: a state with `values` int64 [m], ascending, and `counts` int64 [m],
whose size depends on how many different values there are; parts add up in any order.
"""

import numpy as np

from ..base import State


def distinct(values: np.ndarray) -> np.ndarray:
    """Returns the different values, int64 [m], ascending; `np.unique` is slower."""
    values = np.sort(values)
    return values[np.diff(values, prepend=values[:1] - 1) != 0]


def count(values: np.ndarray, counts: np.ndarray | None = None) -> State:
    """Returns how often each value occurs.

    Args:
        values: int64 [n].
        counts: how often each of them counts, int64 [n]; once by default.
    """
    if counts is None:
        distinct, times = np.unique(values, return_counts=True)
        return {"values": distinct.astype(np.int64), "counts": times.astype(np.int64)}
    # Two sorted runs are merged in linear time by a stable sort.
    order = np.argsort(values, kind="stable")
    values, counts = values[order], counts[order]
    firsts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    sums = np.add.reduceat(counts, firsts) if len(firsts) else counts
    return {"values": values[firsts], "counts": sums}


def add_counts(one: State, other: State) -> State:
    """Returns two counts as one."""
    values = np.concatenate([one["values"], other["values"]])
    return count(values, np.concatenate([one["counts"], other["counts"]]))


def look_up(known: np.ndarray, of: np.ndarray, values: np.ndarray, default: float) -> np.ndarray:
    """Returns what belongs to each value [n].

    Args:
        known: int64 [m], ascending.
        of: what belongs to each of them [m].
        values: int64 [n].
        default: what belongs to others.
    """
    if not len(known):
        return np.full(len(values), default, dtype=of.dtype)
    at = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[at] == values, of[at], default)
