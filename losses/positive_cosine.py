"""A reward for the similarity of matching pairs, to be added to InfoNCE.

R = -1/B sum_i u_i.v_i with normalised embeddings: the positives alone, whatever the negatives do.
Chen et al., "Understanding Transferable Representation Learning and Zero-shot Transfer in CLIP"
(2023); the formula is written down from memory, without the paper at hand.
"""

from jaxtyping import Float
from torch import Tensor

from .base import SampleTerm
from .components.features import Tensors, full_precision, need


class PositiveCosine(SampleTerm):
    """The negative mean cosine of the pairs. No pair meets another; nothing travels."""

    needs = ("image", "text")
    name = "margin"

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """-cosine of each pair; reads `image`, `text` [b, d]."""
        image, text = full_precision(*(need(features, name, self) for name in self.needs))
        return -(image * text).sum(1)
