"""Zero-shot detection of images of no class, by what their cosines with class prompts are.

Ming et al., "Delving into Out-of-Distribution Detection with Vision-Language Representations"
(2022), section 3: the score is the highest softmax probability of cosines over a temperature of 1.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ....data.image_sets import ImageSet
from ....losses.components.similarity import Metric
from ..encode import Encoder
from ..outcomes import Outcomes
from ..zero_shot.classification import ZeroShot
from .detection import detection


class OutsideImages(ZeroShot):
    """AUROC and FPR95 of scores that class prompts give to images.

    Embeddings are normalised under every objective.

    Args:
        outside: images of none of the classes.
        outside_where: fields and values of the images of `outside` that count; None: all.
        zeroshot: arguments of `ZeroShot`; `data` are images of the classes.
    """

    def __init__(self, outside: ImageSet, outside_where: dict[str, Any] | None = None, **zeroshot):
        super().__init__(**zeroshot)
        self.outside = outside
        self.outside_where = outside_where

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._outside = np.asarray(self.outside.select(self.outside_where), dtype=np.int64)
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.outside, self._outside)]

    @abstractmethod
    def classifiers(self, encoder: Encoder) -> list[Tensor]:
        """Returns features of the classes, [classes, d], in as many ways as `scores` needs."""

    @abstractmethod
    def scores(self, cosines: list[Tensor], encoder: Encoder) -> dict[str, Tensor]:
        """Returns scores [n] by prefix of their measures, higher for images of the classes.

        Args:
            cosines: with each of the classifiers, float64 [n, classes].
            encoder: for the model's scale.
        """

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        plain = replace(encoder, metric=Metric())
        classifiers = self.classifiers(plain)
        parts = ((self.data, chosen), (self.outside, self._outside))
        keys = [self.keys(items, images) for images, items in parts]
        inside, outside = (
            self.scores(
                [
                    plain.logits(plain.image_features(images, items), each, 1.0).cpu().double()
                    for each in classifiers
                ],
                plain,
            )
            for images, items in parts
        )
        found: dict[str, Outcomes] = {}
        for prefix in inside:
            pair = inside[prefix].numpy(), outside[prefix].numpy()
            found |= detection(*pair, *keys, prefix=prefix)
        return found


class ConceptMatching(OutsideImages):
    """AUROC and FPR95 of the MCM score, and of the highest cosine.

    Measures: `auroc`, `fpr95` of MCM; `cosine_auroc`, `cosine_fpr95` of the highest cosine.

    Args:
        outside: see `OutsideImages`.
        temperature: of the softmax; 1 in the paper.
        others: further arguments of `OutsideImages`.
    """

    def __init__(self, outside: ImageSet, temperature: float = 1.0, **others):
        super().__init__(outside, **others)
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}; it has to be above 0")
        self.temperature = temperature

    def classifiers(self, encoder: Encoder) -> list[Tensor]:
        return [self.classifier(encoder)]

    def scores(self, cosines: list[Tensor], encoder: Encoder) -> dict[str, Tensor]:
        (cosine,) = cosines
        matching = (cosine / self.temperature).softmax(1).amax(1)
        return {"": matching, "cosine_": cosine.amax(1)}
