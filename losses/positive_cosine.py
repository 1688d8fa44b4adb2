"""A reward for the similarity of matching pairs, to be added to InfoNCE.

R = -1/B sum_i u_i.v_i with normalised embeddings: the positives alone, whatever the negatives do.
Chen et al., "Understanding Transferable Representation Learning and Zero-shot Transfer in CLIP"
(2023); the formula is written down from memory, without the paper at hand.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from .base import Term
from .distributed.collectives import share
from .features import full_precision, need


class PositiveCosine(Term):
    """The negative mean cosine of the pairs. No pair meets another; nothing travels."""

    needs = ("image", "text")

    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns `{margin: value}`, this rank's share."""
        return {"margin": share(self.per_sample(features, batch))}

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """-cosine of each pair; reads `image`, `text` [b, d]."""
        image, text = full_precision(*(need(features, name, self) for name in self.needs))
        return -(image * text).sum(1)
