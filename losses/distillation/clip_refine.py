"""Post-pretraining that closes the gap between the modalities (CLIP-Refine): RaFA and HyCD.

RaFA (random feature alignment): 1/B sum_i [ |x_i - z_i|^2 + |y_i - z_i|^2 ] / d: the image and the
text of a pair are both drawn to the same z_i ~ N(0, I), new at every step.

HyCD (hybrid contrastive distillation): the softmax over all pairs follows a mixture of the own pair
and the teacher's softmax, alpha 1[i = j] + (1 - alpha) softmax_j(x'_i.y'_j); the teacher is the
model as it was.

Both read x and y before normalisation, and HyCD's products have no scale, as in the authors' code;
over the global batch. Yamaguchi et al., "Post-pre-training for Modality Alignment in
Vision-Language Foundation Models" (2025), sections 4.1 and 4.2. Their models' products are about
30; where those of own pairs are far larger the softmax is one-hot and holds nothing: `form` and
`scale` of HyCD are for such models.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..base import SampleTerm
from ..components.features import Tensors, full_precision, need
from ..kernels.keyed_random import normal
from ..scalars import Fixed
from .soft_contrastive import SoftContrastive


class RaFA(SampleTerm):
    """Mean squared distance of both features of a pair from one random vector.

    The vector is a function of (seed, number of the step, key of the sample): the same for any
    number of ranks, and after a resume, because the number is in the checkpoint. The steps are
    those of this term: with accumulation, each forward pass counts.

    Args:
        seed: of the random vectors.
    """

    needs = ("image.raw", "text.raw")
    name = "rafa"
    steps: Tensor

    def __init__(self, seed: int = 0):
        super().__init__()
        self.seed = seed
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        # First, so that what is logged of single samples has the vectors of the step.
        self.steps += 1
        return super().forward(features, batch)

    @property
    def reads_weight(self) -> bool:
        return True

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Sum of both distances of each pair; reads the batch's `key`."""
        image, text = full_precision(*(need(features, name, self) for name in self.needs))
        drawn = normal(batch["key"], image.shape[1], self.seed, self.steps).to(image)
        return ((image - drawn).square() + (text - drawn).square()).mean(1)


class HyCD(SoftContrastive):
    """Cross-entropy with a mixture of the own pair and teachers; see the module's docstring.

    Args:
        teachers: prefixes of the teachers' features.
        alpha: part of the target that is on the own pair.
        form: suffix of the features, none for normalised ones.
        scale: of the products, the student's and the teachers'; of normalised features about 100.
        pairwise: of `SoftContrastive`.
    """

    name = "hycd"

    def __init__(
        self,
        teachers: Sequence[str],
        alpha: float = 0.5,
        form: Literal["", ".raw"] = ".raw",
        scale: float = 1.0,
        **pairwise: Any,
    ):
        scales = [scale] * len(teachers)
        super().__init__(teachers, scales, alpha, form=form, scale=Fixed(scale), **pairwise)
