"""How two sets of features become logits: a lift of each side, and a function of the inner product.

In: features as the towers give them. Out: vectors whose inner product, through `point`, is the
similarity; logits are `scale` times it. One kernel serves them all, because squared distances and
Lorentzian products are inner products of lifted vectors.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from .pairing import Pointwise


class Similarity(nn.Module):
    """Cosine similarity, and the base of the others: the features are normalised already.

    Attributes:
        form: suffix of the features it reads: `` are normalised, `.raw` are not.
        point: function of the inner product; None: the inner product itself.
    """

    form: Literal["", ".raw"] = ""
    point: Pointwise | None = None

    def lift_image(self, image: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Returns the vectors of images whose products with those of texts make logits."""
        return image

    def lift_text(self, text: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """The same of texts."""
        return text

    def scale(self, scale: Float[Tensor, "1"]) -> Float[Tensor, "1"]:
        """Returns the factor of the similarity for a temperature's scale."""
        return scale


class Cosine(Similarity):
    """s u.v of normalised embeddings, as CLIP does."""
