"""Contrast of short captions with what images have most in common (Long-CLIP).

L = -1/2B sum_ij [ q_ij log p_ij + q_ij log p_ij' ] with p (over a row) and p' (over a column) the
softmax of s r_i.t_j, t the short captions, r the images rebuilt from their first principal
components in the global batch (not normalised again), and q = (1 - a) [i = j] + a / B. Zhang et
al., "Long-CLIP: Unlocking the Long-Text Capability of CLIP" (2024), section 3.2: beside it stands
the same loss of the images themselves with the long captions (`lightclip.Softened`), both with
weight 1 and the model's scale.

As in the released code the gradient goes through the decomposition. That code takes the components
of each rank's own batch, which must then have more samples than components, and another loss comes
of another number of ranks; here they are those of the global batch.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors
from .components.primary_components import primary_components
from .kernels.reductions import softmax_sums
from .kernels.targets import Uniform


class PrimaryComponents(PairwiseTerm):
    """Softmax contrastive loss of texts and of images without their details.

    Args:
        num_components: how many principal components of the images stay.
        smoothing: a, of the labels.
        views: the view of the images and that of the texts.
        pairwise: of `PairwiseTerm`.

    Raises:
        ValueError: no component stays, or the smoothing is no fraction.
    """

    name = "primary_components"

    def __init__(
        self,
        num_components: int = 32,
        smoothing: float = 0.1,
        views: tuple[str, str] = ("image", "text.short"),
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        if num_components < 1:
            raise ValueError(
                f"PrimaryComponents has num_components={num_components}: give 1 or more"
            )
        if not 0 <= smoothing <= 1:
            raise ValueError(
                f"PrimaryComponents has smoothing={smoothing:g}: it must lie between 0 and 1"
            )
        self.num_components = num_components
        self.smoothing = smoothing
        self.needs = tuple(views)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; reads both views [b, d]."""
        image, text = self.take(features, *self.needs)
        image = primary_components(image, self.num_components)
        pairing = self.pairing(diagonal=1 - self.smoothing, targets=((self.smoothing, Uniform()),))
        return softmax_sums(text, image, self.logit_scale(features), pairing).cross_entropy()
