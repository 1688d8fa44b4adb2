"""CLIP score: how well a caption fits its image, by a model's embeddings of both.

Schuhmann et al., "LAION-400M" (2021), section 2 (cosine at least 0.3) and "LAION-5B" (2022),
section 3 (0.28); Gadre et al., "DataComp" (2023), section 4 (the best 30%). With a store that one's
own model has made it is the filter of Fang et al., "Data Filtering Networks" (2023), and with
captions without numbers that of Xu et al., "Devil in the Number" (2023).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import KEEP, Columns, Filter, State
from ...numerics.fixed_point import cosines, unit_vectors

BLOCK = 1 << 12  # rows at once, which a processor's cache holds


@dataclass(frozen=True)
class ClipScore(Filter):
    """Writes the cosine of two embeddings of each sample, and may keep those above a limit.

    Of a store with several variants of each sample it is the mean of their cosines.

    Args:
        image: column of the images' embeddings.
        text: column of the captions' embeddings; `clip.text.masked` for captions without numbers.
        column: name of the score.
        min: the lowest score that is kept; None keeps all, for `threshold` to choose a share.

    Raises:
        ValueError: no cosine is as high as `min`.
    """

    image: str = "clip.image"
    text: str = "clip.text"
    column: str = "clip_score"
    min: float | None = None

    def __post_init__(self):
        if self.min is not None and self.min > 1:
            raise ValueError(f"min={self.min}: cosines end at 1; LAION takes 0.28")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The two embeddings."""
        return (self.image, self.text)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The score, and `keep` with a limit."""
        return (self.column,) if self.min is None else (self.column, KEEP)

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        parts = [self._cosines(rows.slice(i, BLOCK)) for i in range(0, rows.num_rows, BLOCK)]
        score = np.concatenate(parts)
        columns: Columns = {self.column: score.astype(np.float32)}
        return columns if self.min is None else columns | {KEEP: score >= self.min}

    def _cosines(self, rows: pa.RecordBatch) -> np.ndarray:
        image, text = unit_vectors(rows, self.image), unit_vectors(rows, self.text)
        if image.shape != text.shape:
            raise ValueError(
                f"{self.image} has {image.shape[1]} numbers a row and {self.text} "
                f"{text.shape[1]}: a cosine needs two embeddings of the same model"
            )
        return cosines(image, text)
