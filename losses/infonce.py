"""Softmax contrastive loss over the global batch (InfoNCE, CLIP).

L = -1/(2B) sum_i [ log softmax_j(s u_i.v_j)_i + log softmax_j(s v_i.u_j)_i ] with normalised
embeddings u, v of B pairs and the multiplicative logit scale s. Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021), section 2.3.
"""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import WEIGHT, PairwiseTerm
from .components.features import Tensors
from .components.similarity import Cosine, Similarity
from .distributed.collectives import share, total
from .distributed.exchange import NoGradGather, NoGradGatherKeepLocal
from .kernels.label_sampling import SampledLabels, sample_labels
from .kernels.reductions import softmax_sums


class InfoNCE(PairwiseTerm):
    """Mean over both directions of the cross-entropy of each row against all columns.

    Only the images travel: their normalisers are completed by exchanging vectors.

    Args:
        similarity: what is scaled to logits; the default is the cosine.
        views: the view of the images and that of the texts, without the form of the features.
        pairwise: of `PairwiseTerm`.
    """

    name = "infonce"

    def __init__(
        self,
        similarity: Similarity | None = None,
        views: tuple[str, str] = ("image", "text"),
        **pairwise: Any,
    ):
        super().__init__(**pairwise)
        self.similarity = similarity or Cosine()
        self.needs = tuple(f"{view}{self.similarity.form}" for view in views)

    def ranking_similarity(self) -> Similarity:
        return self.similarity

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; reads both views [b, d]."""
        image, text, scale = self._compared(features)
        pairing = self.pairing(point=self.similarity.point)
        return softmax_sums(text, image, scale, pairing).cross_entropy()

    @property
    def ahead(self) -> tuple[str, ...]:
        return self.needs[:1] if self.sends_as_is(self.similarity) else ()

    def sampled(self, features: Tensors, batch: Tensors, seed: int) -> Float[Tensor, ""]:
        """Returns this rank's share of the loss with labels drawn from its own softmax.

        It is multiplied by the root of the number of labels, two a pair: then the mean of its
        squared gradient is the diagonal of the loss's Gauss-Newton matrix (see `sample_labels`).

        Raises:
            ValueError: the exchange's gradients are not those of the loss.
        """
        if isinstance(self.exchange, NoGradGather | NoGradGatherKeepLocal):
            raise ValueError(
                f"labels cannot be drawn with exchange {type(self.exchange).__name__}, whose "
                "gradients are not those of the loss; use AllGather, Ring or Local"
            )
        image, text, scale = self._compared(features)
        pairing = self.pairing(point=self.similarity.point)
        keys = (batch["key"], batch["key"])
        by_rows = sample_labels(image, text, scale, keys, 2 * seed, pairing)
        by_columns = sample_labels(text, image, scale, keys, 2 * seed + 1, pairing)
        labels = SampledLabels(by_rows, by_columns, self.exchange.open(keys[0]).first)
        pairing = replace(pairing, diagonal=0.0, targets=((1.0, labels),))
        losses = softmax_sums(image, text, scale, pairing).cross_entropy()
        weights = batch.get(WEIGHT, torch.ones_like(losses)).double()
        # A label counts by the root of its sample's weight, and the squares of these add up.
        roots = weights.sqrt()
        of_roots, of_weights = total(torch.stack([roots.sum(), weights.sum()]))
        num_labels = 2 * of_roots.square() / of_weights.clamp_min(1e-300)
        return share(losses, roots.to(losses.dtype)) * num_labels.sqrt().to(losses.dtype)

    def _compared(self, features: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """Both views, lifted [b, d], and the scale."""
        image, text = self.take(features, *self.needs)
        return (
            self.similarity.lift_image(image, features),
            self.similarity.lift_text(text, features),
            self.similarity.scale(self.logit_scale(features), features),
        )
