"""Pairwise sigmoid loss over the global batch (SigLIP).

L = -1/B sum_ij log sigmoid(z_ij (s u_i.v_j + b)), z_ii = 1 and -1 elsewhere, over all B x B pairs.
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), section 3.2; the paper starts
from s = 10 and b = -10.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors
from .components.similarity import Cosine, Similarity
from .kernels.reductions import softplus_sums
from .scalars import Scalar


class SigLIP(PairwiseTerm):
    """Binary classification of every image-text pair; only the images travel.

    Args:
        similarity: what is scaled to logits; the default is the cosine.
        bias: a scalar of its own, or the name of a feature.
        pairwise: of `PairwiseTerm`.
    """

    name = "siglip"

    def __init__(
        self,
        similarity: Similarity | None = None,
        bias: Scalar | str = "logit_bias",
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        self.bias = bias
        self.similarity = similarity or Cosine()
        form = self.similarity.form
        self.needs = (f"image{form}", f"text{form}")

    def ranking_similarity(self) -> Similarity:
        return self.similarity

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Each text against all images; reads `image`, `text` [b, d].

        Raises:
            ValueError: the model has no logit bias.
        """
        image, text = self.take(features, *self.needs)
        # log sigmoid(-x) of all pairs, then the sign of the positive ones turned:
        # log sigmoid(x) - log sigmoid(-x) = x.
        sums, positive = softplus_sums(
            self.similarity.lift_text(text, features),
            self.similarity.lift_image(image, features),
            self.similarity.scale(self.logit_scale(features), features),
            self.logit_bias(features),
            self.pairing(point=self.similarity.point),
        )
        return sums - positive

    @property
    def ahead(self) -> tuple[str, ...]:
        return self.needs[:1] if self.sends_as_is(self.similarity) else ()
