"""Contrastive leave-one-out boost (CLOOB), and its first part alone (InfoLOOB).

LOOB(A, P) = 1/B sum_i [ -A_i.P_i + 1/s log sum_{j != i} exp(s A_i.P_j) ]: the pair itself is not in
the denominator, so that the loss does not saturate; the factor 1/s keeps gradients of one size for
any temperature. With p(x; S) = softmax(beta x S^T) S, normalised to length one, and all images U
and texts V of the batch:

    L = LOOB(p(u; U), p(v; U)) + LOOB(p(v; V), p(u; V)),

so that each of both terms compares what one memory gives. InfoLOOB alone is
LOOB(u, v) + LOOB(v, u). Fürst et al., "CLOOB: Modern Hopfield Networks with InfoLOOB Outperform
CLIP" (2021); the factor 1/s, the plain sum and the defaults are those of its published code.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .base import PairwiseTerm
from .components.features import Tensors
from .kernels.attention import retrieve
from .kernels.reductions import row_sums, softmax_sums
from .scalars import Fixed, Scalar


class InfoLOOB(PairwiseTerm):
    """Leave-one-out in both directions between the embeddings as they are.

    Args:
        scale: a scalar of its own (None: fixed at 30), or the name of a feature (see
            `PairwiseTerm`).
        pairwise: of `PairwiseTerm`.
    """

    needs = ("image", "text")
    name = "infoloob"

    def __init__(self, scale: Scalar | str | None = None, **pairwise: Any):
        super().__init__(scale=scale or Fixed(30.0), **pairwise)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Both directions of each pair; reads `image`, `text` [b, d]; -inf in a batch of one."""
        image, text = self.take(features, *self.needs)
        scale = self.logit_scale(features)
        sums = softmax_sums(image, text, scale, self.pairing(pairs="others"))
        return (sums.rows - sums.row_targets + sums.columns - sums.column_targets) / scale


class CLOOB(PairwiseTerm):
    """A contrastive loss between what both embeddings of a pair retrieve from one memory.

    Args:
        pairs: the denominator: `others` leaves out the pair itself (CLOOB), `all` does not (the
            retrieval alone, with InfoNCE).
        beta: inverse temperature of the retrieval, a scalar of its own (None: fixed at 8).
        scale: a scalar of its own (None: fixed at 30), or the name of a feature (see
            `PairwiseTerm`).
        pairwise: of `PairwiseTerm`.
    """

    needs = ("image", "text")
    name = "cloob"

    def __init__(
        self,
        pairs: Literal["others", "all"] = "others",
        beta: Scalar | None = None,
        scale: Scalar | str | None = None,
        **pairwise: Any,
    ):
        super().__init__(scale=scale or Fixed(30.0), **pairwise)
        self.pairs: Literal["others", "all"] = pairs
        self.beta = beta or Fixed(8.0)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Both memories' losses of each pair; reads `image`, `text` [b, d]; see `InfoLOOB`."""
        image, text = self.take(features, *self.needs)
        scale = self.logit_scale(features)
        by_image, by_text = self._recall(image, text, image)
        first = self._one_way(by_image, by_text, scale)
        by_image, by_text = self._recall(image, text, text)
        return first + self._one_way(by_text, by_image, scale)

    def _recall(self, image: Tensor, text: Tensor, store: Tensor) -> tuple[Tensor, Tensor]:
        """Both sides' retrievals from one memory, which travels once for both."""
        retrieved = retrieve(torch.cat([image, text]), store, self.beta(), self.pairing())
        image, text = F.normalize(retrieved, dim=1).tensor_split(2)
        return image, text

    def _one_way(self, anchors: Tensor, positives: Tensor, scale: Tensor) -> Tensor:
        sums = row_sums(anchors, positives, scale, self.pairing(pairs=self.pairs))
        return sums / scale - (anchors * positives).sum(1)
