"""Hard negatives: texts and images that differ from a pair in one respect (NegCLIP, TripletCLIP).

N(u, v, v-) = 1/2B sum_i [ -log softmax_j over both (s u_i.v_j) and (s u_i.v-_j), at v_i
                           -log softmax_j(s v_i.u_j), at u_i ]

NegCLIP: N(u, v, v-): each image also discriminates against all negative texts of the batch.
Yuksekgonul et al., "When and Why Vision-Language Models Behave like Bags-of-Words, and What to Do
about It?" (2023), section 4.

TripletCLIP: N(u, v, v-) + N(u-, v-, v): negative images u- are shown with their own texts, and
the texts of the pairs are the hard ones. Patel et al., "TripletCLIP: Improving Compositional
Reasoning of CLIP via Synthetic Vision-Language Negatives" (2024), section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors
from .kernels.masks import Valid
from .kernels.reductions import row_sums, softmax_sums


class NegCLIP(PairwiseTerm):
    """Softmax contrastive loss whose images have all negative texts as further columns.

    Args:
        negatives: features of the negative texts. A batch entry `NAME.present` marks the samples
            that have one; without such an entry all have.
        views: the features of the images and the texts. With `[text, text.positive]` it is the loss
            over text triplets of jina-clip's third stage (Koukounas et al. 2024, section 3.2).
        pairwise: of `PairwiseTerm`.
    """

    name = "negclip"

    def __init__(
        self,
        negatives: Sequence[str] = ("text.negative",),
        views: tuple[str, str] = ("image", "text"),
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        if isinstance(negatives, str) or not negatives:
            raise ValueError(f"negatives={negatives!r} must be a list such as [text.negative]")
        self.negatives = tuple(negatives)
        self.needs = (*views, *self.negatives)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        image, text, *negatives = self.take(features, *self.needs)
        every = torch.ones(len(image), dtype=torch.bool, device=image.device)
        has_negative = torch.cat([present(batch, name, every) for name in self.negatives])
        scale = self.logit_scale(features)
        return self.contrast((image, text, every), (torch.cat(negatives), has_negative), scale)

    def contrast(
        self, pairs: tuple[Tensor, Tensor, Tensor], further: tuple[Tensor, Tensor], scale: Tensor
    ) -> Float[Tensor, "b"]:
        """Returns N of each pair.

        Args:
            pairs: images and texts [b, d], and which of them count [b].
            further: columns for the images [m, d], and which of them count [m].
            scale: s.
        """
        image, text, is_pair = pairs
        columns, is_column = further
        pairing = self.pairing(weights=(Valid(is_pair, is_pair),))
        sums = softmax_sums(image, text, scale, pairing)
        negatives = row_sums(
            image, columns, scale, self.pairing(weights=(Valid(is_pair, is_column),))
        )
        return sums._replace(rows=torch.logaddexp(sums.rows, negatives)).cross_entropy()


class TripletCLIP(NegCLIP):
    """NegCLIP twice, the second time with roles exchanged: negative images show negative texts.

    A sample without a negative has the first part only, and lends its text to the others' second
    part. All parts are divided by the number of samples in the batch.

    Args:
        text_negative: feature of the negative texts.
        image_negative: feature of their images. A batch entry `NAME.present` of either marks
            the samples that have one; without such an entry all have.
        pairwise: of `NegCLIP`.
    """

    name = "tripletclip"

    def __init__(
        self,
        text_negative: str = "text.negative",
        image_negative: str = "image.negative",
        **pairwise: Any,
    ):
        super().__init__([text_negative], **pairwise)
        self.image_negative = image_negative
        self.needs = (*self.needs, image_negative)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        image, text, text_negative, image_negative = self.take(features, *self.needs)
        scale = self.logit_scale(features)
        every = torch.ones(len(image), dtype=torch.bool, device=image.device)
        has_text = present(batch, self.negatives[0], every)
        has_both = has_text & present(batch, self.image_negative, every)
        first = self.contrast((image, text, every), (text_negative, has_text), scale)
        exchanged = (image_negative, text_negative, has_both)
        second = self.contrast(exchanged, (text, every), scale)
        return first + torch.where(has_both, second, 0.0)


def present(batch: Tensors, name: str, every: Bool[Tensor, "b"]) -> Bool[Tensor, "b"]:
    """Returns which samples have an optional entry: all, if the batch has no such entry."""
    return batch.get(f"{name}.present", every)
