"""Contrastive loss of each modality with its own augmentation (CleanCLIP's in-modal terms).

L = 1/P sum over P pairs (a, b) of CE_r(s a b^T): the anchor picks its own augmentation among the
augmentations of all samples; the augmentation picks nothing. CleanCLIP has (u, u') and (v, v') of
images and captions, with the scale of its InfoNCE. Bansal et al., "CleanCLIP: Mitigating Data
Poisoning Attacks in Multimodal Contrastive Learning" (2023), section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .base import WEIGHT, PairwiseTerm
from .components.features import Tensors
from .distributed.collectives import total
from .kernels.masks import Valid
from .kernels.reductions import row_sums


class InModal(PairwiseTerm):
    """Mean over pairs (anchor, augmented) of one-sided cross-entropies.

    A sample without its augmentation (`NAME.present` in the batch is false, as for texts that some
    samples lack) is no anchor and no candidate of that pair.

    Args:
        pairs: features of anchors and of their augmentations.
        pairwise: of `PairwiseTerm`.

    Raises:
        ValueError: no pairs.
    """

    name = "inmodal"

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]] = (
            ("image", "image.strong_1"),
            ("text", "text.augmented"),
        ),
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        if not pairs:
            raise ValueError("InModal needs pairs, such as [[image, image.strong_1]]")
        self.pairs = [tuple(pair) for pair in pairs]
        self.needs = tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean over the pairs of each sample; reads the features named in `pairs`, [b, d]."""
        scale, losses = self.logit_scale(features), []
        for pair in self.pairs:
            anchors, augmented = self.take(features, *pair)
            # Whether the entry exists depends on the configuration alone: the same on every rank.
            present = batch.get(f"{pair[1]}.present")
            losses.append(self._picked(anchors, augmented, scale, present, batch.get(WEIGHT)))
        return torch.stack(losses).mean(0)

    def _picked(
        self,
        anchors: Float[Tensor, "b d"],
        augmented: Float[Tensor, "b d"],
        scale: Float[Tensor, "1"],
        present: Bool[Tensor, "b"] | None,
        sample_weights: Float[Tensor, "b"] | None,
    ) -> Float[Tensor, "b"]:
        weights = () if present is None else (Valid(present, present),)
        sums = row_sums(anchors, augmented, scale, self.pairing(weights=weights))
        losses = sums - scale * (anchors * augmented).sum(1)
        if present is None:
            return losses
        # So that the mean over all samples is that over those present.
        every = torch.ones_like(losses) if sample_weights is None else sample_weights.to(losses)
        of_all, of_present = total(torch.stack([every, every * present]).sum(1))
        ratio = torch.where(of_present > 0, of_all / of_present, 0.0)
        return losses.masked_fill(~present, 0.0) * ratio
