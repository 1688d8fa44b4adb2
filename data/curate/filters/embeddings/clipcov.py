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

from ...base import KEEP, Columns, GroupFilter, State
from ...numerics.array_files import class_embeddings
from ...numerics.fixed_point import MAX_SUMMED, UNIT, rounded, unit_vectors

BLOCK = 1 << 11  # rows at once


@dataclass(frozen=True)
class ClipCov(GroupFilter):
    """Keeps a fraction of each class, and writes the score before anything is picked.

    By sums over a class, the time is linear in the number of its samples, times the passes over
    them: one for every 200 picks, up to `passes`.

    Args:
        classes: file of the prompts' embeddings, `classes` [classes, d], of the store's model.
        image: column of the images' embeddings.
        text: column of the captions' embeddings.
        fraction: how much of each class is kept (rounded up).
        every: picks after which the others' scores are lowered, or more where
        passes: times would not be enough (at the defaults: in classes of over 100,000 samples);
            not with `positive`.
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
    passes: int = 50
    positive: bool = False
    column: str = "clipcov"

    def __post_init__(self):
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} must lie above 0 and not above 1")
        if not 1 <= self.every <= MAX_SUMMED:
            raise ValueError(f"every={self.every} must lie between 1 and {MAX_SUMMED:,}")
        if self.passes < 1:
            raise ValueError(f"passes={self.passes}: give 1 or more")

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
        if image.shape != text.shape:
            raise ValueError(
                f"{self.image} has {image.shape[1]} numbers a row and {self.text} "
                f"{text.shape[1]}: both must come from the same model"
            )
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
            image, text = _narrow(group, self.image), _narrow(group, self.text)
            prompts = self.prompts(image.shape[1])
            of = int((image[:1].astype(np.float64) @ prompts.T).argmax())
            if self.positive:
                cross = self._common_to_all(image, text) / len(image)
            else:
                cross = _both(image, text, state["means"][0, of], state["means"][1, of])
            own = _row_products(image, text)
            label = _products(text, prompts[of])
            others = _both(image, text, state["elsewhere"][0, of], state["elsewhere"][1, of])
            score = (cross + 2 * own + label / 2 - others) / UNIT**2
            scores.append(score.astype(np.float32))
            keep.append(self._picked(image, text, score))
        return {KEEP: np.concatenate(keep), self.column: np.concatenate(scores)}

    def _picked(self, image: np.ndarray, text: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Returns which rows of a class are kept, bool [n]; of equal scores the first."""
        score, picked = score.copy(), np.zeros(len(image), dtype=bool)
        wanted = int(np.ceil(self.fraction * len(image) - 1e-9))
        every = self.every if self.positive else max(self.every, -(-wanted // self.passes))
        while wanted:
            score[picked] = -np.inf
            new = np.argsort(-score, kind="stable")[: min(every, wanted)]
            picked[new] = True
            wanted -= len(new)
            if wanted:
                score -= self._common(image, text, new) / len(image) / UNIT**2
        return picked

    def _common(self, image: np.ndarray, text: np.ndarray, some: np.ndarray) -> np.ndarray:
        """Returns the sum of each row's products with some of the rows, both ways, [n]."""
        images, texts = image[some].astype(np.float64), text[some].astype(np.float64)
        if not self.positive:
            means = (np.rint(side.sum(0) / len(some)) for side in (images, texts))
            return _both(image, text, *means) * len(some)
        parts = []
        for first in range(0, len(image), BLOCK):
            rows = slice(first, first + BLOCK)
            to_texts = image[rows].astype(np.float64) @ texts.T
            to_images = text[rows].astype(np.float64) @ images.T
            parts.append(np.maximum(to_texts, 0).sum(1) + np.maximum(to_images, 0).sum(1))
        return np.concatenate(parts)

    def _common_to_all(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Returns the sum of each row's products with all rows, both ways, int64 [n]."""
        total = np.zeros(len(image), dtype=np.int64)
        for first in range(0, len(image), BLOCK):
            some = np.arange(first, min(first + BLOCK, len(image)))
            total += self._common(image, text, some).astype(np.int64)
        return total


def _narrow(rows: pa.RecordBatch, name: str) -> np.ndarray:
    """Returns `unit_vectors` as float32 [n, d], which holds them exactly in half the memory."""
    blocks = (rows.slice(first, BLOCK) for first in range(0, rows.num_rows, BLOCK))
    return np.concatenate([unit_vectors(block, name).astype(np.float32) for block in blocks])


def _products(vectors: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Returns the products of narrow vectors [n, d] with one vector [d], float64 [n]."""
    starts = range(0, len(vectors), BLOCK)
    return np.concatenate([vectors[i : i + BLOCK].astype(np.float64) @ by for i in starts])


def _both(
    image: np.ndarray, text: np.ndarray, by_image: np.ndarray, by_text: np.ndarray
) -> np.ndarray:
    """Returns products of images with a caption's vector and of captions with an image's, [n]."""
    return _products(image, by_text) + _products(text, by_image)


def _row_products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns the products of narrow vectors [n, d] row by row, float64 [n]."""
    return np.einsum("nd,nd->n", one, other, dtype=np.float64)
