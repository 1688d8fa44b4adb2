"""An estimate of accuracy without labels.

Xie et al., "MaNo: Exploiting Matrix Norm for Unsupervised Accuracy Estimation Under Distribution
Shifts" (2024), section 4: logits become probabilities, by the softmax where they are far from
uniform and else by its second-order expansion, and their normalised 4-norm over images and classes
grows with the accuracy. The number is no accuracy itself: a line through sets whose accuracy is
known makes it one.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..accuracy import accuracies, class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from ..zero_shot.classification import ZeroShot

ORDER = 4
THRESHOLD = 5.0


class MatrixNorm(ZeroShot):
    """MaNo's score beside the accuracy that it stands for.

    Measures: `top1`, for which labels are needed, and `mano`, for which none are.

    Args:
        scale: what similarities are multiplied with; None: the model's own.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, scale: float | None = None, **zeroshot):
        super().__init__(**zeroshot)
        self.scale = scale

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        image, classifier = encoder.images(self.data, chosen), self.classifier(encoder)
        logits = encoder.logits(image, classifier, self.scale).cpu()
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()])
        found = class_ranks(logits, targets)
        values = accuracies(found, targets.numpy(), self.keys(chosen), len(self._names))
        return {"top1": values["top1"], "mano": matrix_norm(logits)}


def matrix_norm(logits: Tensor) -> float:
    """Returns the score of logits [n, classes], from 0 to 1."""
    logits = logits.double()
    # Cross entropy with uniform targets: large where probabilities are far from uniform.
    divergence = float(-logits.log_softmax(1).mean())
    if divergence > THRESHOLD:
        probabilities = logits.softmax(1)
    else:
        expanded = 1 + logits + logits.square() / 2
        expanded = expanded - expanded.amin(1, keepdim=True)
        probabilities = expanded / expanded.sum(1, keepdim=True).clamp_min(1e-12)
    return float(probabilities.pow(ORDER).mean() ** (1 / ORDER))
