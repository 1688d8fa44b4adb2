"""Distillation in the sigmoid's form: every pair matches to the degree that the teacher gives.

L = -1/B sum_ij [ t_ij log sigmoid(z_ij) + (1 - t_ij) log sigmoid(-z_ij) ] with the student's logits
z = s u_i.v_j + b and t the same sigmoid of the teacher's embeddings, scale and bias; SigLIP's loss
(Zhai et al. 2023) is that of t = 1 for a sample's own pair and 0 for all others. Faghri et al.,
"MobileCLIP2" (2025), distil SigLIP teachers like this.
"""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..components.features import Tensors
from ..kernels.reductions import softplus_sums
from ..kernels.targets import SoftMatch
from ..scalars import Scalar
from .base import TeacherTerm


class SoftSigLIP(TeacherTerm):
    """Binary cross-entropy of every image-text pair with the teachers' sigmoid.

    Args:
        teachers: prefixes of the teachers' features (see `TeacherTerm`). Several are averaged after
            the sigmoid.
        teacher_scales, teacher_biases: numbers for each; None: each teacher's own,
            `teacher.large.logit_scale` and `teacher.large.logit_bias`.
        bias: of the student: a scalar of its own, or the name of a feature.
        pairwise: of `TeacherTerm`.

    Raises:
        ValueError: no teachers, or another number of scales or biases.
    """

    name = "soft_siglip"

    def __init__(
        self,
        teachers: Sequence[str],
        teacher_scales: Sequence[float] | None = None,
        teacher_biases: Sequence[float] | None = None,
        bias: Scalar | str = "logit_bias",
        **pairwise: Any,
    ):
        super().__init__(teachers, form="", **pairwise)
        self.also_need("logit_scale", teacher_scales)
        self.also_need("logit_bias", teacher_biases)
        self.teacher_scales, self.teacher_biases = teacher_scales, teacher_biases
        self.bias = bias

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Each image against all texts.

        Raises:
            ValueError: a model has no logit bias.
        """
        (image, text), *theirs = self.sides(features, batch)
        scales = self.numbers_of_teachers(self.teacher_scales, "logit_scale", features)
        biases = self.numbers_of_teachers(self.teacher_biases, "logit_bias", features)
        targets = tuple(
            (1 / len(theirs), SoftMatch(rows, columns, scale, bias))
            for (rows, columns), scale, bias in zip(theirs, scales, biases, strict=True)
        )
        # -t log sigmoid(z) - (1 - t) log sigmoid(-z) = log(1 + exp(z)) - t z.
        sums, matched = softplus_sums(
            image,
            text,
            self.logit_scale(features),
            self.logit_bias(features),
            self.pairing(diagonal=0.0, targets=targets),
        )
        return sums - matched
