"""Interactive contrastive learning (ICL): the student's embeddings against the teacher's.

L = -1/2B sum_i [ log softmax_j(s u_i.V_j)_i + log softmax_j(s v_i.U_j)_i ] with the images u and
texts v of the student, U and V of the teacher, and a scale of its own: the student is the anchor in
both parts. Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation" (2024), section
3.2. The authors' code uses the stored scale as it is, from 2.66; here it is an exponential, from
1/0.07.
"""

from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from ..base import PairwiseTerm
from ..components.features import Tensors
from ..components.heads import fitting
from ..kernels.reductions import row_sums
from ..scalars import Scalar, Temperature


class Interactive(PairwiseTerm):
    """Mean cross-entropy of the student's images against the teacher's texts, and the other way.

    Args:
        teacher: prefix of the teacher's features, such as `teacher.large`.
        image_head, text_head: trained, on the student's side: to the teacher's width, rows of
            length one (`heads.UnitMLP`). None: the embeddings as they are.
        form: suffix of the student's features: none for normalised ones, `.raw` for those before.
        scale: a scalar (None: a learned one of its own), or the name of a feature.
        pairwise: of `PairwiseTerm`.
    """

    name = "interactive"

    def __init__(
        self,
        teacher: str,
        image_head: nn.Module | None = None,
        text_head: nn.Module | None = None,
        form: Literal["", ".raw"] = "",
        scale: Scalar | str | None = None,
        **pairwise: Any,
    ):
        super().__init__(scale=scale or Temperature(), **pairwise)
        self.image_head = image_head or nn.Identity()
        self.text_head = text_head or nn.Identity()
        self.needs = (f"image{form}", f"text{form}", f"{teacher}.image", f"{teacher}.text")

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        image, text, *theirs = self.take({**batch, **features}, *self.needs)
        their_image, their_text = (feature.detach() for feature in theirs)
        scale = self.logit_scale(features)
        parts = (
            (fitting(self.image_head, image, their_text), their_text),
            (fitting(self.text_head, text, their_image), their_image),
        )
        losses = [
            row_sums(rows, columns, scale, self.pairing()) - scale * (rows * columns).sum(1)
            for rows, columns in parts
        ]
        return (losses[0] + losses[1]) / 2
