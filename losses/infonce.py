"""Softmax contrastive loss over the global batch (InfoNCE, CLIP).

L = -1/(2B) sum_i [ log softmax_j(s u_i.v_j)_i + log softmax_j(s v_i.u_j)_i ] with normalised
embeddings u, v of B pairs and the multiplicative logit scale s. Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021), section 2.3.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from .exchange import Exchange
from .pairing import TILE_BYTES
from .pairs import softmax_sums
from .pairwise import Pairwise
from .scalars import Scalar
from .similarity import Cosine, Similarity


class InfoNCE(Pairwise):
    """Mean over both directions of the cross-entropy of each row against all columns.

    Only the texts travel: their normalisers are completed by exchanging vectors.

    Args:
        similarity: what is scaled to logits; the default is the cosine.
        exchange: how the other ranks' texts arrive; the default is exact.
        scale: a scalar of its own, or the name of a feature (see `Pairwise`).
        tile_bytes: memory of one block of logits.
        views: the view of the pictures and that of the texts, without the form of the features.
    """

    name = "infonce"

    def __init__(
        self,
        similarity: Similarity | None = None,
        exchange: Exchange | None = None,
        scale: Scalar | str = "logit_scale",
        tile_bytes: int = TILE_BYTES,
        views: tuple[str, str] = ("image", "text"),
    ):
        super().__init__(exchange, scale, tile_bytes)
        self.similarity = similarity or Cosine()
        self.needs = tuple(f"{view}{self.similarity.form}" for view in views)

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; reads both views [b, d]."""
        image, text = self.take(features, *self.needs)
        sums = softmax_sums(
            self.similarity.lift_image(image, features),
            self.similarity.lift_text(text, features),
            self.similarity.scale(self.logit_scale(features), features),
            self.pairing(point=self.similarity.point),
        )
        return (sums.rows - sums.row_targets + sums.columns - sums.column_targets) / 2
