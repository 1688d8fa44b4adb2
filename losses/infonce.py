"""Softmax contrastive loss over the global batch (InfoNCE, CLIP).

L = -1/(2B) sum_i [ log softmax_j(s u_i.v_j)_i + log softmax_j(s v_i.u_j)_i ] with normalised
embeddings u, v of B pairs and the multiplicative logit scale s. Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision" (2021), section 2.3.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from .exchange import AllGather, Exchange, world
from .term import Term, full_precision


class InfoNCE(Term):
    """Mean over both directions of the cross-entropy of each row against all columns.

    Args:
        exchange: how the other ranks' columns arrive; the default is exact.
    """

    needs = ("image", "text", "logit_scale")

    def __init__(self, exchange: Exchange | None = None):
        super().__init__()
        self.exchange = exchange or AllGather()

    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns `{"infonce": value}`; reads `image`, `text` [b, d] and `logit_scale` [1]."""
        image, text, scale = full_precision(
            features["image"], features["text"], features["logit_scale"]
        )
        with torch.autocast(image.device.type, enabled=False):
            value = (self.side(image, text, scale) + self.side(text, image, scale)) / 2
        return {"infonce": value}

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; see `Term.per_sample`."""
        image, text, scale = full_precision(
            features["image"], features["text"], features["logit_scale"]
        )
        with torch.autocast(image.device.type, enabled=False):
            sides = [self.logits(a, b, scale) for a, b in ((image, text), (text, image))]
            losses = [F.cross_entropy(*side, reduction="none") for side in sides]
        return (losses[0] + losses[1]) / 2

    def side(
        self,
        rows: Float[Tensor, "b d"],
        columns: Float[Tensor, "b d"],
        scale: Float[Tensor, "1"],
    ) -> Float[Tensor, ""]:
        """Cross-entropy of this rank's rows against everybody's columns: share x W / B."""
        logits, labels = self.logits(rows, columns, scale)
        share = F.cross_entropy(logits, labels, reduction="sum")
        return share * world()[1] / logits.shape[1]

    def logits(
        self,
        rows: Float[Tensor, "b d"],
        columns: Float[Tensor, "b d"],
        scale: Float[Tensor, "1"],
    ) -> tuple[Float[Tensor, "b B"], Int[Tensor, "b"]]:
        """Returns this rank's rows against everybody's columns, and where each row's pair is."""
        gathered = self.exchange(columns)
        labels = torch.arange(rows.shape[0], device=rows.device) + gathered.offset
        return scale * rows @ gathered.values.T, labels
