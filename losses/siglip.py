"""Pairwise sigmoid loss over the global batch (SigLIP).

L = -1/B sum_ij log sigmoid(z_ij (s u_i.v_j + b)), z_ii = 1 and -1 elsewhere, over all B x B pairs.
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), section 3.2; the paper starts
from s = 10 and b = -10.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .pairwise import Pairwise
from .term import full_precision, need
from .tiles import softplus_sum


class SigLIP(Pairwise):
    """Binary classification of every image-text pair; only the texts travel.

    Args:
        exchange: how the other ranks' texts arrive; the default is exact.
        tile_bytes: memory of one block of logits.
    """

    needs = ("image", "text", "logit_scale", "logit_bias")
    name = "siglip"

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Each image against all texts; reads `image`, `text` [b, d], `logit_scale`, `logit_bias`.

        Raises:
            ValueError: the model has no logit bias.
        """
        bias = need(features, "logit_bias", self, "set objective.logit_bias_init (SigLIP: -10)")
        image, text, scale, bias = full_precision(
            features["image"], features["text"], features["logit_scale"], bias
        )
        with torch.autocast(image.device.type, enabled=False):
            texts = self.exchange(text)
            # log sigmoid(-x) of all pairs, then the sign of the positive ones turned:
            # log sigmoid(x) - log sigmoid(-x) = x.
            sums, positive = softplus_sum(
                image, texts.values, scale, bias, texts.offset, self.tile_bytes
            )
            return sums - positive
