"""Gradient distillation (GD): the contrastive loss pulls the student as it pulls the teacher.

L = 1/(BD) sum over the four gradients of |g_i - G_i|^2, g those of the student's embeddings, G of
the teacher's. For images u, texts v and a scale s, with P the softmax of s u_i.v_j over a row and Q
over a column, InfoNCE's two halves -sum_i log P_ii and -sum_j log Q_jj have the gradients

    s (sum_j P_ij v_j - v_i),  s (sum_i P_ij u_i - u_j),  s (sum_i Q_ij u_i - u_j),
    s (sum_j Q_ij v_j - v_i).

Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation" (2024), section 3.2, has the
gradients of means over the batch, 1/B of these, so that its weight grows with B^2; and its code
divides by s instead of multiplying, which makes P and Q nearly uniform and takes a weight of 1e8.
With its B of 1,024 and 512 dimensions that is as strong as 1e8 D / (512 s^4 B^2) here, 0.00057 at
s = 1/0.07 and D = 128. A weight of 1 keeps a student where all embeddings are equal, and its
gradients as small as a good teacher's.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..base import PairwiseTerm
from ..components.features import Tensors
from ..components.heads import fitting
from ..kernels.reductions import softmax_sums
from ..kernels.softmax_means import softmax_means


class GradientMatching(PairwiseTerm):
    """Mean squared distance between the student's gradients of InfoNCE and the teacher's.

    Args:
        teacher: prefix of the teacher's features, such as `teacher.large`.
        teacher_scale: None: its own, `teacher.large.logit_scale`.
        image_head, text_head: trained, on the student's side: to the teacher's width, rows of
            length one (`heads.UnitMLP`). None: the embeddings as they are.
        pairwise: of `PairwiseTerm`.
    """

    name = "gradients"

    def __init__(
        self,
        teacher: str,
        teacher_scale: float | None = None,
        image_head: nn.Module | None = None,
        text_head: nn.Module | None = None,
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        self.teacher_scale = teacher_scale
        self.image_head = image_head or nn.Identity()
        self.text_head = text_head or nn.Identity()
        self.pairs = ("image", "text", f"{teacher}.image", f"{teacher}.text")
        own = (f"{teacher}.logit_scale",) if teacher_scale is None else ()
        self.needs = (*self.pairs, *own)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Of each pair: its four distances, a mean over the dimensions."""
        image, text, *theirs = self.take({**batch, **features}, *self.pairs)
        image = fitting(self.image_head, image, theirs[0])
        text = fitting(self.text_head, text, theirs[1])
        with torch.no_grad():
            targets = self.gradients(theirs[0], theirs[1], self._teacher_scale(features))
        gradients = self.gradients(image, text, self.logit_scale(features))
        pairs = zip(gradients, targets, strict=True)
        distances = [(gradient - target).square().mean(1) for gradient, target in pairs]
        return torch.stack(distances).sum(0)

    def gradients(
        self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], scale: Float[Tensor, "1"]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns those of each rank's own pairs [b, d], in the order of the module's docstring."""
        pairing = self.pairing()
        sums = softmax_sums(image, text, scale, pairing)
        by_rows, by_columns = softmax_means(scale * image, text, sums.rows, sums.columns, pairing)
        of_texts = softmax_means(scale * text, image, sums.columns, sums.rows, pairing)
        return (
            scale * (by_rows - text),
            scale * (of_texts[1] - image),
            scale * (of_texts[0] - image),
            scale * (by_columns - text),
        )

    def _teacher_scale(self, features: Tensors) -> Float[Tensor, "1"]:
        if self.teacher_scale is None:
            return self.take(features, self.needs[-1])[0]
        return torch.full((1,), float(self.teacher_scale), device=features[self.needs[0]].device)
