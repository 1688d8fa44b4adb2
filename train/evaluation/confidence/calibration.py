"""Calibration: whether of the answers given with 80% confidence 80% are right.

Guo et al., "On Calibration of Modern Neural Networks" (2017), sections 2 and 4.2: the expected
calibration error over 15 bins of equal width, as it is, and after one temperature is fitted.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..accuracy import class_ranks
from ..details import Curve, Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import recall_at
from ..task import order_by_hash
from ..zero_shot.classification import ZeroShot

NUM_BINS = 15


class Calibration(ZeroShot):
    """How far confidence is from accuracy, in zero-shot classification.

    Probabilities are the softmax over the classes of the objective's logits. Measures: `top1`;
    `confidence`, the mean of the highest probability; `calibration_error` (ECE); `scaled_error`,
    the ECE after one temperature was fitted, to each half of the images for the other half;
    `log_loss.nats`, the mean of -log P(right class); `reliability`, the curve of accuracy by
    confidence. Outcomes of `confidence` are per image.

    Args:
        scale: what similarities are multiplied with; None: the model's own. It decides the result:
            100 in CLIP, and in the tables that use it.
        num_bins: of equal width.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, scale: float | None = None, num_bins: int = NUM_BINS, **zeroshot):
        super().__init__(**zeroshot)
        if num_bins < 1 or (scale is not None and scale <= 0):
            raise ValueError(f"num_bins is {num_bins} and scale {scale}; both have to be above 0")
        self.scale = scale
        self.num_bins = num_bins

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        image, classifier = encoder.images(self.data, chosen), self.classifier(encoder)
        logits = encoder.logits(image, classifier, self.scale).cpu().double()
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()])
        keys, ranks = self.keys(chosen), class_ranks(logits, targets)
        is_right = (ranks < 1).numpy()
        confidence = logits.softmax(1).amax(1).numpy()
        losses = -logits.log_softmax(1).gather(1, targets[:, None])[:, 0].numpy()
        scaled = logits / temperatures(logits, targets, keys)[:, None]
        scaled_confidence = scaled.softmax(1).amax(1).numpy()
        return {
            "top1": Outcomes(recall_at(ranks, 1), is_right, keys),
            "confidence": Outcomes(float(confidence.mean()), confidence, keys),
            "calibration_error": calibration_error(confidence, is_right, self.num_bins),
            "scaled_error": calibration_error(scaled_confidence, is_right, self.num_bins),
            "log_loss.nats": Outcomes(float(losses.mean()), losses, keys),
            "reliability": reliability(confidence, is_right, self.num_bins),
        }


def calibration_error(confidence: np.ndarray, is_right: np.ndarray, num_bins: int) -> float:
    """Returns the mean over images of |accuracy - confidence| of their bin.

    Args:
        confidence: probability of the answer, [n].
        is_right: whether it is right, [n].
        num_bins: of equal width; a bin holds its upper edge.
    """
    if not np.isfinite(confidence).all():  # of a model that diverged
        return float("nan")
    bins = bins_of(confidence, num_bins)
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def bins_of(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """Returns the bin of each image, int64 [n]."""
    return np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(np.int64)


def reliability(confidence: np.ndarray, is_right: np.ndarray, num_bins: int) -> Curve:
    """Returns the accuracy of each bin that has images, by its mean confidence."""
    is_finite = np.isfinite(confidence)  # of a model that diverged none are
    confidence, is_right = confidence[is_finite], is_right[is_finite]
    bins = bins_of(confidence, num_bins)
    sizes = np.bincount(bins, minlength=num_bins)
    kept = sizes > 0
    x, y = (
        np.bincount(bins, weights=each, minlength=num_bins)[kept] / sizes[kept]
        for each in (confidence, is_right)
    )
    return Curve(
        x.tolist(), y.tolist(), "confidence", "accuracy", sizes[kept].tolist(), kind="shares"
    )


def temperatures(logits: Tensor, targets: Tensor, keys: list[str]) -> Tensor:
    """Returns the temperature of each image, [n], fitted to the half that it is not in."""
    order = torch.from_numpy(order_by_hash(keys))
    half = torch.zeros(len(keys), dtype=torch.bool)
    half[order[: len(keys) // 2]] = True
    out = torch.ones(len(keys), dtype=torch.float64)
    if len(keys) > 1:
        for part in (half, ~half):
            out[~part] = temperature(logits[part], targets[part])
    return out


def temperature(logits: Tensor, targets: Tensor) -> float:
    """Returns the temperature with the lowest mean loss, from 0.001 to 1,000.

    The loss is convex in 1 / temperature: its derivative is bisected.
    """
    own = logits.gather(1, targets[:, None])[:, 0]

    def slope(inverse: float) -> float:
        expected = ((logits * inverse).softmax(1) * logits).sum(1)
        return float((expected - own).mean())

    low, high = 1e-3, 1e3
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return 1 / (low * high) ** 0.5
