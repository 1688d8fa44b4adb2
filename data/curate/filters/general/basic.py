"""Size, shape and caption length: the basic filter of DataComp.

Gadre et al., "DataComp" (2023), section 4 and appendix: more than two words and five characters,
the smaller side at least 200 pixels, the aspect ratio at most 3.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, numbers


@dataclass(frozen=True)
class Basic(Filter):
    """Keeps samples within limits.

    Args:
        min_side: pixels of the smaller side, at least.
        max_aspect: longer side by shorter side, at most.
        min_words: words of the caption, at least.
        min_characters: characters of the caption, at least.
        max_words: words of the caption, at most.

    Raises:
        ValueError: the limits leave nothing.
    """

    min_side: int = 200
    max_aspect: float = 3.0
    min_words: int = 3
    min_characters: int = 6
    max_words: int | None = None

    reads = ("width", "height", "words", "characters")

    def __post_init__(self):
        if self.max_aspect < 1:
            raise ValueError(f"max_aspect={self.max_aspect} is below 1, which no image is")
        if self.max_words is not None and self.max_words < self.min_words:
            raise ValueError(
                f"max_words={self.max_words} is below min_words={self.min_words}, which leaves none"
            )

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        width, height = numbers(rows, "width"), numbers(rows, "height")
        words = numbers(rows, "words")
        longer, shorter = np.maximum(width, height), np.minimum(width, height)
        keep = (shorter >= self.min_side) & (longer <= self.max_aspect * shorter)
        keep &= (words >= self.min_words) & (numbers(rows, "characters") >= self.min_characters)
        if self.max_words is not None:
            keep &= words <= self.max_words
        return {"keep": keep}
