"""Captions that many samples share ("image not found", "logo") say little of any image."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ...hashing import mix, seeded
from ..base import Columns, GroupFilter, State, numbers


@dataclass(frozen=True)
class CaptionFrequency(GroupFilter):
    """Limits how many samples have the same caption.

    Args:
        max_samples: so many may have it.
        beyond: of a caption that more have, `none` stays, or `some`: as many as are allowed, by a
            hash of seed and key.
        seed: of that choice.

    Raises:
        ValueError: `max_samples` is below 1.
    """

    max_samples: int = 100
    beyond: Literal["none", "some"] = "none"
    seed: int = 0

    reads = ("caption_hash",)

    def __post_init__(self):
        if self.max_samples < 1:
            raise ValueError(f"max_samples={self.max_samples} leaves none; give 1 or more")

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return numbers(rows, "caption_hash")

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        sizes = np.diff(starts)
        if self.beyond == "none":
            return {"keep": np.repeat(sizes <= self.max_samples, sizes)}
        draws = mix(numbers(rows, "key"), seeded(self.seed, "captions"))
        order = np.lexsort((draws, np.repeat(np.arange(len(sizes)), sizes)))
        keep = np.zeros(len(draws), dtype=bool)
        keep[order] = np.arange(len(draws)) - np.repeat(starts[:-1], sizes) < self.max_samples
        return {"keep": keep}
