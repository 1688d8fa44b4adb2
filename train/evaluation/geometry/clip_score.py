"""How well captions describe their images, by the model's own judgement.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning" (2021), section
3: CLIP-S = 2.5 max(cos, 0) of the image and "A photo depicts" before the caption; RefCLIP-S is its
harmonic mean with the largest cosine of the caption and a reference, both with the prefix.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from ..task import Task

WEIGHT = 2.5


class ClipScore(Task):
    """CLIPScore of captions, and RefCLIPScore where there are references.

    Measures: `clip_score.points`, from 0 to 2.5, and `ref_clip_score.points`. The published numbers
    are those of OpenAI's ViT-B/32, so only that model's compare with them. Embeddings are
    normalised under every objective.

    Args:
        data: the images.
        captions: the field with the caption that is judged.
        references: the field with the reference captions, a JSON list or one text; None: without.
        separator: text between the references of one field ("\\n": one a line); None: not cut.
        prefix: before every caption.
        where: see `Task`.
        by: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        captions: str = "txt",
        references: str | None = None,
        separator: str | None = None,
        prefix: str = "A photo depicts ",
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        self.captions = captions
        self.references = references
        self.separator = separator
        self.prefix = prefix

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        texts = self.data.values(self.captions, chosen)
        self._captions = dict(zip(chosen.tolist(), texts, strict=True))
        if self.references is not None:
            lists = self.data.lists(self.references, chosen, self.separator)
            self._references = dict(zip(chosen.tolist(), lists, strict=True))
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        items, keys = chosen.tolist(), self.keys(chosen)
        image = encoder.image_features(self.data, chosen).cpu().double()
        captions = [self._captions[i] for i in items]
        references = [self._references[i] for i in items] if self.references else []
        texts = dict.fromkeys(captions + [text for of_image in references for text in of_image])
        position = {text: i for i, text in enumerate(texts)}
        features = encoder.text_features([self.prefix + text for text in texts]).cpu().double()
        own = features[torch.tensor([position[caption] for caption in captions])]
        scores = WEIGHT * (image * own).sum(1).clamp_min(0).numpy()
        values = {"clip_score.points": Outcomes(float(scores.mean()), scores, keys)}
        if references:
            nearest = np.array(
                [
                    float((features[[position[text] for text in of_image]] @ row).max())
                    for row, of_image in zip(own, references, strict=True)
                ]
            )
            both = harmonic_mean(scores, nearest.clip(0))
            values["ref_clip_score.points"] = Outcomes(float(both.mean()), both, keys)
        return values


def harmonic_mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Returns 2ab / (a + b) of numbers from 0 on; 0 where both are 0."""
    total = one + other
    return np.divide(2 * one * other, total, out=np.zeros_like(total), where=total > 0)
