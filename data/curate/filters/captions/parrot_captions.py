"""Captions that spell the text in their image.

Lin et al., "Parrot Captions Teach CLIP to Spot Text" (2024), section 3: the share of a caption's
words that stand in the image, too, is its co-emerging text rate. Words are compared as they are
read, without regard to case; the paper also counts those that are nearly equal.
"""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, texts, vectors
from ...text_boxes import decoded

WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class ParrotCaptions(Filter):
    """Leaves out captions of which too many words stand in the image; writes `co_emerging`.

    A caption without a word has the rate 0.

    Args:
        max_rate: the highest rate that is kept, 0 to 1.
        text: column of what was read, of a store of `counterpoint boxes`.

    Raises:
        ValueError: `max_rate` is out of range.
    """

    max_rate: float = 0.0
    text: str = "boxes.text"

    writes = ("keep", "co_emerging")

    def __post_init__(self):
        if not 0 <= self.max_rate <= 1:
            raise ValueError(f"max_rate={self.max_rate}: give a number between 0 and 1")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Caption and the image's text."""
        return ("caption", self.text)

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        read = decoded(vectors(rows, self.text, normalize=False).astype(np.uint8))
        rates = np.zeros(len(read), dtype=np.float32)
        for row, (caption, text) in enumerate(zip(texts(rows, "caption"), read, strict=True)):
            words = WORD.findall(caption.casefold())
            in_image = set(WORD.findall(text.casefold()))
            if words:
                rates[row] = sum(word in in_image for word in words) / len(words)
        return {"keep": rates <= self.max_rate, "co_emerging": rates}
