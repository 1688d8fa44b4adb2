"""Zero-shot detection of images of no class: maximum concept matching.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations"
(2022), section 3: the score is the highest softmax probability of cosines over a temperature of 1.
CLIPN's two scores need a second text tower, trained to say "no", and are not computed here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ....data.image_sets import ImageSet
from ....losses.components.similarity import Metric
from ..encode import Encoder
from ..outcomes import Outcomes
from ..zero_shot.classification import ZeroShot
from .detection import detection


class ConceptMatching(ZeroShot):
    """AUROC and FPR95 of the MCM score, and of the highest cosine.

    Measures: `auroc`, `fpr95` of MCM; `cosine_auroc`, `cosine_fpr95` of the highest cosine.
    Embeddings are normalised under every objective.

    Args:
        outside: images of none of the classes.
        temperature: of the softmax; 1 in the paper.
        outside_where: fields and values of the images of `outside` that count; None: all.
        zeroshot: arguments of `ZeroShot`; `data` are images of the classes.
    """

    def __init__(
        self,
        outside: ImageSet,
        temperature: float = 1.0,
        outside_where: dict[str, Any] | None = None,
        **zeroshot,
    ):
        super().__init__(**zeroshot)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it has to be above 0")
        self.outside = outside
        self.temperature = temperature
        self.outside_where = outside_where

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._outside = np.asarray(self.outside.select(self.outside_where), dtype=np.int64)
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.outside, self._outside)]

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        plain = replace(encoder, metric=Metric())
        classifier = self.classifier(plain)
        parts = ((self.data, chosen), (self.outside, self._outside))
        keys = [self.keys(items, images) for images, items in parts]
        highest, matching = [], []
        for images, items in parts:
            cosines = plain.logits(encoder.image_features(images, items), classifier, 1.0)
            cosines = cosines.cpu().double()
            highest.append(cosines.amax(1).numpy())
            matching.append((cosines / self.temperature).softmax(1).amax(1).numpy())
        return {
            **detection(*matching, *keys),
            **detection(*highest, *keys, prefix="cosine_"),
        }
