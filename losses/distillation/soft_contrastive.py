"""Soft contrastive cross-entropy: the student's softmax over all pairs follows a teacher's.

L = -1/2B sum_ij [ q_j|i log softmax_j(s u_i.v_j)_j + q_i|j log softmax_i(s u_i.v_j)_i ] where q_j|i
and q_i|j are the same softmaxes of the teacher's features and scale. Also known as contrastive
relational distillation: Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation"
(2024), section 3.2.1; affinity mimicking: Wu et al., "TinyCLIP" (2023), section 3.1 (both scales
fixed at 50). It exceeds the Kullback-Leibler divergence by the entropy of the target, a constant.
Several teachers are averaged after the softmax: Vasu et al., "MobileCLIP" (2024).
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..components.features import Tensors
from ..kernels.reductions import softmax_sums
from ..kernels.targets import Soft
from .base import TeacherTerm


class SoftContrastive(TeacherTerm):
    """Mean over both directions of the cross-entropy with the teachers' softmax.

    Args:
        teachers: prefixes of the teachers' features (see `TeacherTerm`). Several are averaged after
            the softmax.
        teacher_scales: a scale for each; None: each teacher's own, `teacher.large.logit_scale`.
        diagonal: part of the target that is on a sample's own pair, whatever the teachers predict.
        pairwise: of `TeacherTerm`.

    Raises:
        ValueError: no teachers, another number of scales, or a part outside 0 to 1.
    """

    name = "soft_contrastive"

    def __init__(
        self,
        teachers: Sequence[str],
        teacher_scales: Sequence[float] | None = None,
        diagonal: float = 0.0,
        **pairwise: Any,
    ):
        super().__init__(teachers, **pairwise)
        self.also_need("logit_scale", teacher_scales)
        if not 0 <= diagonal <= 1:
            raise ValueError(f"diagonal={diagonal} must lie between 0 and 1")
        self.teacher_scales, self.diagonal = teacher_scales, diagonal

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        (image, text), *theirs = self.sides(features, batch)
        scales = self.numbers_of_teachers(self.teacher_scales, "logit_scale", features)
        part = (1 - self.diagonal) / len(theirs)
        targets = tuple(
            (part, Soft(rows, columns, scale, self.pairing()))
            for (rows, columns), scale in zip(theirs, scales, strict=True)
        )
        pairing = self.pairing(diagonal=self.diagonal, targets=targets)
        sums = softmax_sums(image, text, self.logit_scale(features), pairing)
        return sums.cross_entropy()
