"""Ranking consistency (RankCLIP), to be added to InfoNCE: two similarities shall order alike.

Cross-modal: image i orders the texts as text i orders the images, ListMLE(s U V^T, s V U^T) and the
reverse. In-modal: image i orders the images as text i orders the texts, ListMLE(s U U^T, s V V^T)
and the reverse. Zhang et al., "RankCLIP: Ranking-Consistent Language-Image Pretraining" (2024).

Here both are means over the B rows and over the B places of each list, so that a weight means the
same at any batch size. The published code divides the sum of both means over rows by 32 B, with a
32 that is written into it: its weight w is w/32 here. It lets w grow over the run,
clip(3 (e - 1)/(E - 1), 0, 2) in epoch e of E, which is `weights.Ramp(0, 2/32, stop=2/3)` here; the
mean of that over the run is 4/3 / 32.
"""

from jaxtyping import Float
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors
from .kernels.list_mle import Side, listwise_losses


class CrossModalRanking(PairwiseTerm):
    """Texts in the image's order against images in the text's order.

    Each list is sorted as a whole: B log B a row. `exchange`, `scale`, `tile_bytes` as of
    `PairwiseTerm`; with any exchange but `Local`, every rank holds all columns.
    """

    needs = ("image", "text")
    name = "cross_modal_ranking"

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Both orders of each pair; reads `image`, `text` [b, d]."""
        image, text = self.take(features, *self.needs)
        sides = Side(image, text), Side(text, image)
        return listwise_losses(*sides, self.logit_scale(features), self.pairing())


class InModalRanking(PairwiseTerm):
    """Images in the image's order against texts in the text's order; see `CrossModalRanking`."""

    needs = ("image", "text")
    name = "in_modal_ranking"

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Both orders of each pair; reads `image`, `text` [b, d]."""
        image, text = self.take(features, *self.needs)
        sides = Side(image, image), Side(text, text)
        return listwise_losses(*sides, self.logit_scale(features), self.pairing())
