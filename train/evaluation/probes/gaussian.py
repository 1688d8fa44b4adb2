"""Gaussian discriminant analysis on embeddings, added to the zero-shot logits.

Wang et al., "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation" (2024), section 3.2:
classes are Gaussians with means of their own and one covariance, whose inverse is the empirical
Bayes estimate d ((N - 1) S + tr(S) I)^-1 of Kubokawa and Srivastava (2008).
"""

import torch
from torch import Tensor

from .few_shot import FewShot, Shots

ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


class GaussianDiscriminant(FewShot):
    """Zero-shot logits plus alpha times the log-likelihoods of a Gaussian a class.

    alpha is chosen from 10^-4 to 10^2 by decades. Measures and arguments are those of `FewShot`.
    """

    def settings(self) -> list[tuple[float, ...]]:
        return [(alpha,) for alpha in ALPHAS]

    def fit(self, shots: Shots, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns weights [d, classes] and biases [classes], float64."""
        return discriminant(shots.features, shots.targets, num_classes)

    def bias(
        self, fitted: tuple[Tensor, Tensor], queries: Shots, setting: tuple[float, ...]
    ) -> Tensor:
        weight, bias = fitted
        return setting[0] * (queries.features.to(weight) @ weight + bias)


def discriminant(features: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Returns the linear scores of Gaussians with one covariance and equal priors.

    Args:
        features: [n, d].
        targets: classes, each at least once, int64 [n].
        num_classes: that there are.

    Returns:
        Weights [d, classes] and biases [classes], float64, on the CPU if the device has no float64.
    """
    device = features.device if features.device.type != "mps" else torch.device("cpu")
    x, y = features.to(device).double(), targets.to(device)
    num, width = x.shape
    if not x.isfinite().all():  # of a model that diverged
        return x.new_full((width, num_classes), torch.nan), x.new_full((num_classes,), torch.nan)
    counts = y.bincount(minlength=num_classes)
    means = x.new_zeros(num_classes, width).index_add_(0, y, x) / counts[:, None]
    centred = x - means[y]
    scatter = centred.T @ centred  # (N - 1) S
    shrunk = scatter + scatter.trace() / (num - 1) * torch.eye(width).to(scatter)
    # Of the same features twice there is no covariance: then all classes have the same score.
    weight = width * torch.linalg.pinv(shrunk, hermitian=True) @ means.T
    # log of equal priors is the same for all classes
    return weight, -0.5 * (means.T * weight).sum(0)
