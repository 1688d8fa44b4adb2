"""Softmax contrastive loss over the global batch (InfoNCE, CLIP).

L = -1/(2B) sum_i [ log softmax_j(s u_i.v_j)_i + log softmax_j(s v_i.u_j)_i ] with normalised
embeddings u, v of B pairs and the multiplicative logit scale s. Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021), section 2.3.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from .exchange import AllGather, Exchange, own_columns_total
from .term import Term, full_precision
from .tiles import TILE_BYTES, log_sum_exp


class InfoNCE(Term):
    """Mean over both directions of the cross-entropy of each row against all columns.

    Only the texts travel: each rank compares its images with all texts, block by block, and the
    texts' normalisers are completed by exchanging vectors.

    Args:
        exchange: how the other ranks' texts arrive; the default is exact.
        tile_bytes: memory of one block of logits.
    """

    needs = ("image", "text", "logit_scale")

    def __init__(self, exchange: Exchange | None = None, tile_bytes: int = TILE_BYTES):
        super().__init__()
        self.exchange = exchange or AllGather()
        self.tile_bytes = tile_bytes

    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns `{"infonce": value}`; reads `image`, `text` [b, d] and `logit_scale` [1]."""
        rows = self.per_sample(features, batch)
        # Every rank has as many rows, so that a mean of means is the mean over the global batch.
        return {"infonce": rows.mean()}

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; see `Term.per_sample`."""
        image, text, scale = full_precision(
            features["image"], features["text"], features["logit_scale"]
        )
        with torch.autocast(image.device.type, enabled=False):
            texts = self.exchange(text)
            over_texts, over_images, positive = log_sum_exp(
                image, texts.values, scale, texts.offset, self.tile_bytes
            )
            return (over_texts + own_columns_total(over_images)) / 2 - positive
