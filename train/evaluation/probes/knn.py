"""Nearest neighbours: the class that the most similar training images vote for.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (2018),
section 3.4, with the temperature that Caron et al. (2021, DINO, appendix F.1) keep: of the k
training images with the largest cosine, each votes for its class with exp(cosine / 0.07).
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from ..accuracy import accuracies, class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import CHUNK_SCORES, full_precision
from .labelled import Labelled, Part


class NearestNeighbours(Labelled):
    """Accuracy of a weighted vote of the nearest training images.

    Measures: `top1`, `top5` (with more than five classes), `mean_per_class_recall`.

    Args:
        k: how many neighbours vote.
        temperature: of their weights.
        labelled: arguments of `Labelled`.
    """

    def __init__(self, k: int = 20, temperature: float = 0.07, **labelled):
        super().__init__(**labelled)
        if k < 1 or temperature <= 0:
            raise ValueError(f"k is {k} and temperature {temperature}; both have to be above 0")
        self.k = k
        self.temperature = temperature

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        train, test = self.parts(encoder, chosen)
        k = min(self.k, len(train.targets))
        scores = votes(train, test.features, self.num_classes, k, self.temperature)
        ranks = class_ranks(scores, test.targets)
        return accuracies(ranks, test.targets.cpu().numpy(), self.keys(chosen), self.num_classes)


def votes(train: Part, queries: Tensor, num_classes: int, k: int, temperature: float) -> Tensor:
    """Returns the sum of the weights of each class's neighbours, float32 [n, classes]."""
    references = F.normalize(train.features, dim=1)
    queries = F.normalize(queries, dim=1)
    rows = max(1, CHUNK_SCORES // len(references))
    scores = queries.new_zeros(len(queries), num_classes)
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        with full_precision(queries.device):
            cosines, nearest = (queries[part] @ references.T).topk(k, dim=1)
        scores[part].scatter_add_(1, train.targets[nearest], (cosines / temperature).exp())
    return scores
