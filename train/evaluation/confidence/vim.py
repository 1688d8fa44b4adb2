"""Detection of images of no class by what their features hold beside those of training images.

Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching" (2022), section 4: with a linear
head (W, b) on features x, o = -pinv(W) b, and R the directions in which training features x - o
vary least, the score is logsumexp(logits) - alpha |R^T (x - o)|, where alpha makes the second part
as large as the highest logit, on average over the training images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from ..probes.linear_probe import Linear, LinearProbe, fit
from .detection import detection


class VirtualLogit(LinearProbe):
    """AUROC and FPR95 of ViM with logistic regression as its head.

    Measures: `auroc` and `fpr95` of ViM; `energy_auroc` and `energy_fpr95` of logsumexp(logits)
    alone.

    Args:
        outside: images of none of the classes.
        dimension: of the principal space; None: 1000 of at least 2048 dimensions, 512 of at least
            768, else half of them, as the published code.
        outside_where: fields and values of the images of `outside` that count; None: all.
        probe: arguments of `LinearProbe`; `data` are images of the classes.
    """

    def __init__(
        self,
        outside: ImageSet,
        dimension: int | None = None,
        outside_where: dict[str, Any] | None = None,
        **probe,
    ):
        super().__init__(**probe)
        self.outside = outside
        self.dimension = dimension
        self.outside_where = outside_where

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._outside = np.asarray(self.outside.select(self.outside_where), dtype=np.int64)
        return chosen

    def further_images(self) -> list[tuple[ImageSet, np.ndarray]]:
        return [*super().further_images(), (self.outside, self._outside)]

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        train, test = self.parts(encoder, chosen)
        penalty = self.penalty or self._search(train)
        linear = fit(train, self.num_classes, penalty)
        residual = Residual.of(train.features, linear, self.dimension)
        outside = encoder.image_features(self.outside, self._outside, self.form)
        energies = [linear(x).logsumexp(1) for x in (test.features, outside)]
        scores = [
            energy - residual(x)
            for energy, x in zip(energies, (test.features, outside), strict=True)
        ]
        names = self.keys(chosen), self.keys(self._outside, self.outside)
        (inside, other), (inside_energy, other_energy) = (
            [each.cpu().numpy() for each in pair] for pair in (scores, energies)
        )
        return {
            **detection(inside, other, *names),
            **detection(inside_energy, other_energy, *names, prefix="energy_"),
        }


@dataclass(frozen=True)
class Residual:
    """The virtual logit.

    Attributes:
        origin: o above, float64 [d].
        directions: R above, [d, r].
        alpha: factor.
    """

    origin: Tensor
    directions: Tensor
    alpha: float

    @classmethod
    def of(cls, features: Tensor, linear: Linear, dimension: int | None) -> "Residual":
        """Finds the directions in training features [n, d]."""
        weight, bias = linear.weight, linear.bias
        width = len(weight)
        dimension = dimension or principal_dimension(width)
        if not 0 < dimension < width:
            raise ValueError(f"dimension is {dimension}; features have {width}, so give 1 to less")
        if not (features.isfinite().all() and weight.isfinite().all()):  # of a model that diverged
            return cls(torch.full_like(bias.new_empty(width), torch.nan), weight, torch.nan)
        origin = -torch.linalg.pinv(weight.T) @ bias
        centred = features.to(weight) - origin
        _, vectors = torch.linalg.eigh(centred.T @ centred)  # the smallest eigenvalues first
        directions = vectors[:, : width - dimension]
        lengths = (centred @ directions).norm(dim=1)
        alpha = linear(features).amax(1).mean() / lengths.mean()
        return cls(origin, directions, float(alpha))

    def __call__(self, features: Tensor) -> Tensor:
        """Returns the virtual logits [n]."""
        return self.alpha * ((features.to(self.origin) - self.origin) @ self.directions).norm(dim=1)


def principal_dimension(width: int) -> int:
    """Returns the published code's dimension of the principal space."""
    if width >= 2048:
        return 1000
    return 512 if width >= 768 else width // 2
