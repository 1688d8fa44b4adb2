"""Fooling images: whether one image fits captions better than their own images do.

Freiberger et al., "CLIPMasterPrints: Fooling Contrastive Language-Image Pre-training Using Latent
Variable Evolution" (2023): images that mean nothing are made to score high with many captions, and
often outdo the pictures that the captions were written for. Here such images are given, not made.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision
from ..retrieval import Retrieval


class FoolingImages(Retrieval):
    """Share of images that a fooling image outdoes at their own caption.

    Measures: `fooled_error`, the share of (image, fooling image) pairs in which the fooling image
    scores at least as high with the image's first caption as the image itself;
    `best_fooled_error`, that of the fooling image that outdoes most.

    Args:
        fooling: the fooling images.
        fooling_where: fields and values of those that count; None: all.
        retrieval: arguments of `Retrieval`; `k` plays no part.
    """

    def __init__(self, fooling: ImageSet, fooling_where: dict[str, Any] | None = None, **retrieval):
        super().__init__(**retrieval)
        self.fooling = fooling
        self.fooling_where = fooling_where

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._fooling = np.asarray(self.fooling.select(self.fooling_where), dtype=np.int64)
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [(self.fooling, self._fooling)]

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        captions = [self._captions[i][0] for i in chosen.tolist()]
        position = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        own = torch.tensor([position[caption] for caption in captions], device=encoder.device)
        text = encoder.texts(list(position))[own]
        image = encoder.images(self.data, chosen)
        fooling = encoder.images(self.fooling, self._fooling)
        with full_precision(encoder.device):
            scores, others = (image * text).sum(1), text @ fooling.T
        # "not below" also counts NaN, which compares to nothing.
        is_fooled = (~(others < scores[:, None])).cpu().double().numpy()
        keys, best = self.keys(chosen), int(is_fooled.mean(0).argmax())
        return {
            name: Outcomes(float(values.mean()), values, keys)
            for name, values in (
                ("fooled_error", is_fooled.mean(1)),
                ("best_fooled_error", is_fooled[:, best]),
            )
        }
