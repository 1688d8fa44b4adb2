"""Text spotting: how near the image of a word lies to the word.

Lin et al., "Parrot Captions Teach CLIP to Spot Text" (2024): captions of the web repeat the text in
their images, and models that learn from them score images by the letters in them. The paper draws
frequent words on a plain ground and reports mean and standard deviation of the cosine of image and
word: 0.317 and 0.0305 for CLIP ViT-B/32, 0.368 and 0.0427 for LAION-2B's, 0.163 and 0.0659
for one that was trained on images without text. The lower, the less a model looks at letters.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ....losses.components.similarity import Metric
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision, ranks, recall_at
from ..task import Task

# Cosines held at a time (32 MiB of float64).
CHUNK_COSINES = 1 << 22


class TextSpotting(Task):
    """Cosine of images of words with their own word, beside that with all other words.

    A cosine alone says little, because models differ in how near all images lie to all texts, so
    there are two more figures. Measures: `cosine` and `cosine_std`, mean and standard deviation
    over images of the cosine with the word that is drawn; `other_cosine` and `other_cosine_std`,
    those over all pairs of an image and another word of the list; `top1`, the fraction of images
    whose own word is the nearest of all words (ties are misses), 1/words for a model that cannot
    read. Cosines are those of the normalised embeddings under every objective, the nearest word is
    that of the objective's similarity.

    Args:
        data: images with a word each: `WordImages`, or cut-outs of real ones.
        label: the field with the word; None: `word`, or what stands for a class in other sets.
        where: see `Task`.
        by: see `Task`; the words are those of all groups.
    """

    def __init__(
        self,
        data: ImageSet,
        label: str | None = None,
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        self.label = label or data.default_label

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        words = self.data.values(self.label, chosen)
        position = {word: i for i, word in enumerate(dict.fromkeys(words))}
        if len(position) < 2:
            raise ValueError(
                f"{self.data} hold one word, '{words[0]}', and text spotting compares it with "
                "others; give at least two"
            )
        self._words = list(position)
        self._targets = dict(zip(chosen.tolist(), (position[w] for w in words), strict=True))
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        keys, targets = self.keys(chosen), [self._targets[i] for i in chosen.tolist()]
        image, text = encoder.images(self.data, chosen), encoder.texts(self._words)
        word_ranks = ranks(image, text, [[target] for target in targets])
        if encoder.metric.form:  # lifted for other similarities, their products are no cosines
            encoder = replace(encoder, metric=Metric())
            image, text = encoder.images(self.data, chosen), encoder.texts(self._words)
        own, others, squares = cosines(image, text, torch.tensor(targets))
        mean = float(others.mean())
        return {
            "cosine": Outcomes(float(own.mean()), own, keys),
            "cosine_std": float(own.std()),
            "other_cosine": Outcomes(mean, others, keys),
            # Equal cosines, as of a collapsed model, may round to a variance below 0.
            "other_cosine_std": float(np.sqrt(max(squares.mean() - mean**2, 0.0))),
            "top1": Outcomes(recall_at(word_ranks, 1), word_ranks.numpy() < 1, keys),
        }


def cosines(
    image: Tensor, text: Tensor, targets: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns of each image its cosine with its own text, and two means over all other texts.

    Args:
        image: unit vectors [n, d].
        text: unit vectors [m, d], at least two.
        targets: the position of each image's own text, int64 [n].

    Returns:
        The cosine with the own text, the mean of those with the others and the mean of their
        squares, float64 [n] each.
    """
    parts = []
    rows = max(1, CHUNK_COSINES // len(text))
    for start in range(0, len(image), rows):
        with full_precision(image.device):
            scores = (image[start : start + rows] @ text.T).cpu().double()
        own = scores.gather(1, targets[start : start + rows, None])[:, 0]
        others = (scores.sum(1) - own) / (len(text) - 1)
        squares = (scores.square().sum(1) - own.square()) / (len(text) - 1)
        parts.append(torch.stack([own, others, squares]))
    own, others, squares = torch.cat(parts, 1).numpy()
    return own, others, squares
