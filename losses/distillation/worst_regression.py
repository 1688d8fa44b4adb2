"""Regression of the worst of several features: what learns is the one furthest from its target.

In: features of several versions of each sample, such as attacked captions, and one feature that
stays where it is. Out: the mean distance of each sample's worst version. Nothing but a count is
exchanged.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..base import SampleTerm
from ..components.features import Tensors, full_precision, need


def squared_length(guess: Float[Tensor, "b d"], target: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """Squared Euclidean distance, summed over the dimensions."""
    return (guess - target).square().sum(1)


class WorstRegression(SampleTerm):
    """Mean over samples of the largest distance between a version and the target.

    Abad Rocamora et al., "Robustness in Both Domains: CLIP Needs a Robust Text Encoder" (2025,
    LEAF), equation 2: max over texts near S of ||f(text) - f0(S)||^2, f0 being the text tower as it
    was, features before normalisation. The paper searches for the worst text with the tower in the
    loop; here it is the worst of those that the batch holds
    (`counterpoint.data.text.character_edits`). Only the worst gets a gradient.

    Args:
        features: the versions, such as `text.attack_1.raw`, `text.attack_2.raw`.
        target: what they are drawn to, such as `teacher.original.text.raw`.
        distance: of each row from its target: a function here, or one of `feature_regression`.

    Raises:
        ValueError: there are no features.
    """

    name = "worst_regression"

    def __init__(self, features: Sequence[str], target: str, distance: Callable = squared_length):
        super().__init__()
        if isinstance(features, str) or not features:
            raise ValueError(
                f"WorstRegression has features={features!r}: give a list such as "
                "[text.attack_1.raw, text.attack_2.raw]"
            )
        self.features = tuple(features)
        self.target = target
        self.distance = distance
        self.needs = (*self.features, target)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Returns each sample's largest distance."""
        fix = "name a teacher's feature, or an entry of data.sidecars"
        entry = need({**batch, **features}, self.target, self, fix).detach()
        distances = []
        for name in self.features:
            version, target = full_precision(need(features, name, self), entry)
            if version.shape != target.shape:
                raise ValueError(
                    f"'{name}' has {version.shape[1]} numbers a sample and '{self.target}' "
                    f"{target.shape[1]}: the target has to come from a tower of the same width"
                )
            distances.append(self.distance(version, target))
        return torch.stack(distances).amax(0)
