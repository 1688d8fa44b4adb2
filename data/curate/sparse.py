"""Counts of integers of which few occur, as sorted arrays.

In: integers of a batch. Out: a state with `values` int64 [m], ascending, and `counts` int64 [m],
whose size depends on how many different values there are; parts add up in any order.
"""

import numpy as np

from .base import State


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


def counts_of(state: State, values: np.ndarray) -> np.ndarray:
    """Returns how often each value was counted, int64 [n]."""
    if not len(state["values"]):
        return np.zeros(len(values), dtype=np.int64)
    at = np.searchsorted(state["values"], values).clip(max=len(state["values"]) - 1)
    return np.where(state["values"][at] == values, state["counts"][at], 0)
