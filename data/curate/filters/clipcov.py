"""CLIPCov: per class, the samples that stand best for the class's images and captions together.

Joshi et al., "Data-Efficient Contrastive Language-Image Pretraining: Prioritizing Data Quality over
Quantity" (2024), section 4 and the authors' code. A sample i with image x_i and caption t_i, in the
class k whose prompt p_k lies nearest to its image, scores

    (x_i . sum_j t_j + t_i . sum_j x_j) / N_k      over the samples j of its class
    + 2 x_i . t_i + t_i . p_k / 2
    - the mean over other classes l of x_i . c_l + t_i . d_l

with c_l and d_l the mean caption and image of a class. The best are picked one after the other;
after every 200, what each remaining one has in common with those is taken off its first part.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..array_files import class_embeddings
from ..base import KEEP, Columns, GroupFilter, State
from ..fixed_point import MAX_SUMMED, UNIT, cosines, rounded, unit_vectors

BLOCK = 1 << 11  # similarities of so many rows at once


@dataclass(frozen=True)
class ClipCov(GroupFilter):
    """Keeps a fraction of each class, and writes the score before anything is picked.

    By sums over a class, the time is linear in the number of its samples, times one pass over them
    for every 200 picks.

    Args:
        classes: file of the prompts' embeddings, `classes` [classes, d], of the store's model.
        image: column of the images' embeddings.
        text: column of the captions' embeddings.
        fraction: how much of each class is kept (rounded up).
        every: picks after which the others' scores are lowered.
        positive: counts similarities within the class only where they are above 0, as the authors
            do; each pair is then looked at, which takes the square of a class's size in time.
        column: name of the score.

    Raises:
        ValueError: a setting is out of range.
    """

    classes: Path
    image: str = "clip.image"
    text: str = "clip.text"
    fraction: float = 0.1
    every: int = 200
    positive: bool = False
    column: str = "clipcov"

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must lie above 0 and not above 1")
        if not 1 <= self.every <= MAX_SUMMED:
            raise ValueError(f"every={self.every} must lie between 1 and {MAX_SUMMED:,}")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The two embeddings."""
        return (self.image, self.text)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """`keep` and the score."""
        return (KEEP, self.column)

    def files(self) -> list[Path]:
        return [self.classes]

    def prompts(self, width: int) -> np.ndarray:
        """Returns the classes' embeddings as `unit_vectors`, float64 [classes, width]."""
        return rounded(class_embeddings(self.classes, width))

    def partial(self, rows: pa.RecordBatch) -> State:
        image, text = unit_vectors(rows, self.image), unit_vectors(rows, self.text)
        prompts = self.prompts(image.shape[1])
        of = (image @ prompts.T).argmax(1)
        order = np.argsort(of, kind="stable")
        there, starts = np.unique(of[order], return_index=True)
        sums = np.zeros((2, *prompts.shape), dtype=np.int64)
        for side, vectors in enumerate((image, text)):
            sums[side, there] = np.add.reduceat(vectors[order], starts, axis=0).astype(np.int64)
        return {"sums": sums, "counts": np.bincount(of, minlength=len(prompts))}

    def finish(self, total: State) -> State:
        """Returns the means over each class's rows, and over all other classes' means."""
        counts = total["counts"]
        means = total["sums"] / np.maximum(counts, 1)[:, None] / UNIT
        others = np.maximum((counts > 0).sum() - 1, 1)
        elsewhere = (means.sum(1, keepdims=True) - means) / others
        return {"means": np.rint(means * UNIT), "elsewhere": np.rint(elsewhere * UNIT)}

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        image = unit_vectors(rows, self.image)
        return (image @ self.prompts(image.shape[1]).T).argmax(1)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        keep, scores = [], []
        for first, last in pairwise(starts.tolist()):
            group = rows.slice(first, last - first)
            image, text = unit_vectors(group, self.image), unit_vectors(group, self.text)
            prompts = self.prompts(image.shape[1])
            of = int((image[:1] @ prompts.T).argmax())
            score = self._cross(image, text, state["means"][:, of])
            score += 2 * cosines(image, text) + text @ prompts[of] / UNIT**2 / 2
            images_elsewhere, texts_elsewhere = state["elsewhere"][:, of]
            score -= (image @ texts_elsewhere + text @ images_elsewhere) / UNIT**2
            scores.append(score.astype(np.float32))
            keep.append(self._picked(image, text, score.copy()))
        return {KEEP: np.concatenate(keep), self.column: np.concatenate(scores)}

    def _cross(self, image: np.ndarray, text: np.ndarray, means: np.ndarray) -> np.ndarray:
        """Returns the mean similarity to the class, of the image to captions and the reverse."""
        if not self.positive:
            return (image @ means[1] + text @ means[0]) / UNIT**2
        total = np.zeros(len(image), dtype=np.int64)
        for first in range(0, len(image), BLOCK):
            total += self._common(image, text, slice(first, first + BLOCK)).astype(np.int64)
        return total / len(image) / UNIT**2

    def _picked(self, image: np.ndarray, text: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Returns which rows of a class are kept, bool [n]; of equal scores the first."""
        picked = np.zeros(len(image), dtype=bool)
        wanted = int(np.ceil(self.fraction * len(image) - 1e-9))
        while wanted:
            score[picked] = -np.inf
            new = np.argsort(-score, kind="stable")[: min(self.every, wanted)]
            picked[new] = True
            wanted -= len(new)
            if wanted:
                score -= self._common(image, text, new) / len(image) / UNIT**2
        return picked

    def _common(self, image: np.ndarray, text: np.ndarray, some: slice | np.ndarray) -> np.ndarray:
        """Returns the sum of each row's similarities to some of the rows, in 2^-40, both ways."""
        if not self.positive:
            return image @ text[some].sum(0) + text @ image[some].sum(0)
        total = np.maximum(image @ text[some].T, 0).sum(1)
        return total + np.maximum(text @ image[some].T, 0).sum(1)
