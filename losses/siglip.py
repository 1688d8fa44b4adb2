"""Pairwise sigmoid loss over the global batch (SigLIP).

L = -1/B sum_ij log sigmoid(z_ij (s u_i.v_j + b)), z_ii = 1 and -1 elsewhere, over all B x B pairs.
Zhai et al., "Sigmoid Loss for Language Image Pre-Training" (2023), section 3.2; the paper starts
from s = 10 and b = -10.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .exchange import AllGather, Exchange, world
from .term import Term, full_precision, need


class SigLIP(Term):
    """Binary classification of every image-text pair; only the texts travel.

    Args:
        exchange: how the other ranks' texts arrive; the default is exact.
    """

    needs = ("image", "text", "logit_scale", "logit_bias")

    def __init__(self, exchange: Exchange | None = None):
        super().__init__()
        self.exchange = exchange or AllGather()

    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns `{"siglip": value}`; reads `image`, `text` [b, d], `logit_scale`, `logit_bias`.

        Raises:
            ValueError: the model has no logit bias.
        """
        with torch.autocast(features["image"].device.type, enabled=False):
            logits, positives = self.logits(features)
            # log sigmoid(-x) summed over all pairs, then the diagonal's sign turned:
            # log sigmoid(x) - log sigmoid(-x) = x.
            share = F.softplus(logits).sum() - positives.sum()
            value = share * world()[1] / logits.shape[1]
        return {"siglip": value}

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Each image against all texts; see `Term.per_sample`."""
        with torch.autocast(features["image"].device.type, enabled=False):
            logits, positives = self.logits(features)
            return F.softplus(logits).sum(1) - positives

    def logits(
        self, features: Mapping[str, Tensor]
    ) -> tuple[Float[Tensor, "b B"], Float[Tensor, "b"]]:
        """Returns this rank's images against everybody's texts, and those of the pairs."""
        bias = need(features, "logit_bias", self, "set objective.logit_bias_init (SigLIP: -10)")
        image, text, scale, bias = full_precision(
            features["image"], features["text"], features["logit_scale"], bias
        )
        texts = self.exchange(text)
        logits = scale * image @ texts.values.T + bias
        own = torch.arange(image.shape[0], device=image.device)
        return logits, logits[own, own + texts.offset]
