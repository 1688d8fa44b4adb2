"""Exact duplicates: of samples with the same image, or the same image and caption, one stays."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, GroupFilter, State, numbers


@dataclass(frozen=True)
class ExactDuplicates(GroupFilter):
    """Keeps one sample of each image file, caption, or pair of both.

    Which one is a hash of the seed and the key: neither the order of shards nor a source is
    favoured.

    Args:
        of: what has to be equal.
        seed: of the choice.
    """

    of: Literal["image", "caption", "pair"] = "image"
    seed: int = 0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The hashes that are compared."""
        return tuple(f"{part}_hash" for part in ("image", "caption") if self.of in (part, "pair"))

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        first, *others = (numbers(rows, name) for name in self.reads)
        for other in others:
            first = mix(first, other.view(np.uint64)).view(np.int64)
        return first

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        order = mix(numbers(rows, "key"), seeded(self.seed, "duplicates"))
        lowest = np.minimum.reduceat(order, starts[:-1])
        return {"keep": first_of_each(order == np.repeat(lowest, np.diff(starts)), starts)}


def first_of_each(mask: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns a mask [n] with the first true row of each group only (a key may come twice)."""
    before = np.cumsum(mask) - mask
    return mask & (before == np.repeat(before[starts[:-1]], np.diff(starts)))


def first_of_equal(group: np.ndarray, value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns the row of lowest order of each value in each group, sorted by group; int64 [m]."""
    rows = np.lexsort((order, value, group))
    new = np.ones(len(rows), dtype=bool)
    new[1:] = (np.diff(value[rows]) != 0) | (np.diff(group[rows]) != 0)
    return rows[new]
