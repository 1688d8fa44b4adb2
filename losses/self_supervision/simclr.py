"""Contrastive loss between two views of one modality (SimCLR); with InfoNCE beside it, SLIP.

z = normalise(head(x)) of the raw features x of two views a, b of B samples. Each of the 2B anchors
has its sample's other view as the positive and all other samples of both views as negatives:
L = 1/(2B) sum over anchors of log sum_{k != anchor} exp(z.z_k / t) - z.z_+ / t, t = 0.1.
Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (2020), section
2.1; Mu et al., "SLIP: Self-supervision meets Language-Image Pre-training" (2021), section 3.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import PairwiseTerm
from ..components.features import Tensors, full_precision
from ..kernels.reductions import row_sums, softmax_sums
from ..scalars import Fixed, Scalar


class SimCLR(PairwiseTerm):
    """Each view of a sample picks the other one among all views of the global batch.

    Args:
        head: from raw features to those that are compared (SLIP: an MLP of 4096, 4096 and 256);
            by default they are compared as they are.
        views: raw features of the two views.
        scale: inverse temperature: a scalar of its own (10 by default, not learned), or the name
            of a feature.
        pairwise: of `PairwiseTerm`.

    Raises:
        ValueError: the two views are one.
    """

    name = "simclr"

    def __init__(
        self,
        head: nn.Module | None = None,
        views: tuple[str, str] = ("image.strong_1.raw", "image.strong_2.raw"),
        scale: Scalar | str | None = None,
        **pairwise: Any,
    ):
        super().__init__(scale=Fixed(10.0) if scale is None else scale, **pairwise)
        if views[0] == views[1]:
            raise ValueError(
                f"SimCLR compares {views[0]} with itself: name two views, such as "
                "[image.strong_1.raw, image.strong_2.raw]"
            )
        self.head = head or nn.Identity()
        self.needs = tuple(views)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean of a sample's two anchors; reads the two views [b, d]."""
        # One view after the other: statistics of a batch norm are those of one view.
        first, second = (self._embedded(view) for view in self.take(features, *self.needs))
        scale, others = self.logit_scale(features), self.pairing(pairs="others")
        across = softmax_sums(first, second, scale, self.pairing())
        by_first = torch.logaddexp(across.rows, row_sums(first, first, scale, others))
        by_second = torch.logaddexp(across.columns, row_sums(second, second, scale, others))
        return across._replace(rows=by_first, columns=by_second).cross_entropy()

    def _embedded(self, raw: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        (embedded,) = full_precision(self.head(raw))
        return F.normalize(embedded, dim=-1)
