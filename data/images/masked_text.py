"""The view of evaluation with text covered, as T-MARS scores it.

In: boxes around text, in fractions of the image, joined from a store of `counterpoint boxes`. Out:
the image with each box filled by the mean colour around it. Maini et al., "T-MARS: Improving Visual
Representations by Circumventing Text Feature Learning" (2024), section 4.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .decode import EncodedImage, Pixels
from .transforms import EvalTransform, Rng

MAX_BOXES = 16
# Pixels: of float32 fractions of an image with 16,000.
ROUNDING = 1e-3
SIDES = ("left", "top", "right", "bottom")


class MaskedText(EvalTransform):
    """Covers text, then does as `EvalTransform`.

    Its parameters are the boxes: `MAX_BOXES` times left, top, right and bottom, 0 to 1; a box
    without an area is none. The view takes them by `same_as: boxes.boxes` from a sidecar.

    Args:
        margin: pixels around a box whose mean colour fills it.
        choices: of `EvalTransform`.

    Raises:
        ValueError: the margin is below 1.
    """

    columns = tuple(f"{side}_{box}" for box in range(MAX_BOXES) for side in SIDES)

    def __init__(self, margin: int = 4, **choices: Any):
        super().__init__(**choices)
        if margin < 1:
            raise ValueError(f"margin={margin}: give 1 pixel or more")
        self.margin = margin

    def draw(
        self, height: int, width: int, rng: Rng = None, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        return np.zeros(len(self.columns))

    def apply(self, image: EncodedImage, size: int, params: np.ndarray) -> Tensor:
        scale = np.array([image.width, image.height] * 2)
        # A box covers all pixels that it touches, by more than the rounding of stored fractions.
        boxes = params.reshape(MAX_BOXES, 4) * scale
        firsts, ends = np.floor(boxes[:, :2] + ROUNDING), np.ceil(boxes[:, 2:] - ROUNDING)
        boxes = np.concatenate([firsts, ends], axis=1).astype(int)
        boxes = boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
        if not len(boxes):
            return super().apply(image, size, params)
        pixels = image.pixels()
        filled = pixels.clone()
        covered = np.zeros((image.height, image.width), dtype=bool)
        for left, top, right, bottom in boxes.tolist():
            covered[top:bottom, left:right] = True
        for left, top, right, bottom in boxes.tolist():
            rows = slice(max(top - self.margin, 0), bottom + self.margin)
            columns = slice(max(left - self.margin, 0), right + self.margin)
            ring = ~covered[rows, columns]
            # Where the surroundings are text, too, the whole of it has to do.
            around = pixels[:, rows, columns].numpy()[:, ring if ring.any() else np.ones_like(ring)]
            mean = np.rint(around.mean(axis=1, dtype=np.float64))
            for channel, value in enumerate(mean.tolist()):
                filled[channel, top:bottom, left:right] = int(value)
        return super().apply(Pixels(filled), size, params)
