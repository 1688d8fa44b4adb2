"""Softmax contrastive loss over the global batch (InfoNCE, CLIP).

L = -1/(2B) sum_i [ log softmax_j(s u_i.v_j)_i + log softmax_j(s v_i.u_j)_i ] with normalised
embeddings u, v of B pairs and the multiplicative logit scale s. Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021), section 2.3.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .exchange import own_columns_total
from .pairwise import Pairwise
from .term import full_precision
from .tiles import log_sum_exp


class InfoNCE(Pairwise):
    """Mean over both directions of the cross-entropy of each row against all columns.

    Only the texts travel: their normalisers are completed by exchanging vectors.

    Args:
        exchange: how the other ranks' texts arrive; the default is exact.
        tile_bytes: memory of one block of logits.
    """

    needs = ("image", "text", "logit_scale")
    name = "infonce"

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; reads `image`, `text` [b, d], `logit_scale` [1]."""
        image, text, scale = full_precision(
            features["image"], features["text"], features["logit_scale"]
        )
        with torch.autocast(image.device.type, enabled=False):
            texts = self.exchange(text)
            over_texts, over_images, positive = log_sum_exp(
                image, texts.values, scale, texts.offset, self.tile_bytes
            )
            return (over_texts + own_columns_total(over_images)) / 2 - positive
