"""Captions that many samples share ("image not found", "logo") say little of any image."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import Columns, GroupFilter, State, numbers


@dataclass(frozen=True)
class CaptionFrequency(GroupFilter):
    """Leaves out captions that too many samples have.

    Args:
        max_samples: so many may have it; of a caption that more have, none stays (the filter `cap`
            keeps some of each).

    Raises:
        ValueError: `max_samples` is below 1.
    """

    max_samples: int = 100

    reads = ("caption_hash",)

    def __post_init__(self):
        if self.max_samples < 1:
            raise ValueError(f"max_samples={self.max_samples} leaves none; give 1 or more")

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return numbers(rows, "caption_hash")

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        sizes = np.diff(starts)
        return {"keep": np.repeat(sizes <= self.max_samples, sizes)}
