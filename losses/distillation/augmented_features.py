"""Augmented feature distillation (AFD): a contrastive loss between student and teacher together.

L = InfoNCE(W [u; U], W' [v; V]) with the student's u and v, the teacher's U and V, rows of length
one and a scale of its own. Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation"
(2024), section 3.2.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..base import PairwiseTerm
from ..components.features import Tensors, full_precision
from ..kernels.reductions import softmax_sums
from ..scalars import Scalar, Temperature


class AugmentedFeatures(PairwiseTerm):
    """InfoNCE of what two heads make of the student's and the teacher's embeddings side by side.

    Args:
        teacher: prefix of the teacher's features, such as `teacher.large`.
        image_head, text_head: from both widths together to that of the student, rows of length one
            (`heads.UnitMLP`).
        scale: a scalar (None: a learned one of its own), or the name of a feature.
        pairwise: of `PairwiseTerm`.
    """

    name = "augmented"

    def __init__(
        self,
        teacher: str,
        image_head: nn.Module,
        text_head: nn.Module,
        scale: Scalar | str | None = None,
        **pairwise: Any,
    ):
        super().__init__(scale=scale or Temperature(), **pairwise)
        self.image_head, self.text_head = image_head, text_head
        self.needs = ("image", "text", f"{teacher}.image", f"{teacher}.text")

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        sides = self.take({**batch, **features}, *self.needs)
        image, text, their_image, their_text = sides
        rows, columns = full_precision(
            self.image_head(torch.cat([image, their_image.detach()], 1)),
            self.text_head(torch.cat([text, their_text.detach()], 1)),
        )
        sums = softmax_sums(rows, columns, self.logit_scale(features), self.pairing())
        return sums.cross_entropy()
