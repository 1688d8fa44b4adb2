"""Geometric consistency (CyCLIP), to be added to InfoNCE.

    cross-modal: 1/B sum_ij (u_i.v_j - u_j.v_i)^2        in-modal: 1/B sum_ij (u_i.u_j - v_i.v_j)^2

over all B x B pairs: B times a mean over pairs, as in the paper, so that a term grows with the
batch. Goel et al., "CyCLIP: Cyclic Contrastive Language-Image Pretraining" (2022).

With p = u + v and m = u - v both differences are (p_i.m_j -/+ m_i.p_j) / 2 up to sign, minus across
modalities, plus within one. Their squares add up to products of d x d matrices,

    1/2 ( <P'P, M'M> -/+ <P'M, M'P> ),

which ranks add up: no pairs are ever formed. They lose fewer digits than the products of U'U, V'V
and U'V, because every term already has the small factor m twice.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from .base import WEIGHT, Term
from .components.features import Tensors, full_precision, need
from .distributed.collectives import total
from .kernels.tile_ops import multiply


class CrossModalConsistency(Term):
    """Image i to text j as image j to text i. Exact for any number of ranks."""

    needs = ("image", "text")

    @property
    def reads_weight(self) -> bool:
        return True

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{cross_modal: value}`, the same on every rank; reads `image`, `text` [b, d]."""
        image, text = (need(features, name, self) for name in self.needs)
        squares, products = _traces(image, text, batch.get(WEIGHT))
        return {"cross_modal": (squares - products) / 2}


class InModalConsistency(Term):
    """Image i to image j as text i to text j. Exact for any number of ranks."""

    needs = ("image", "text")

    @property
    def reads_weight(self) -> bool:
        return True

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{in_modal: value}`, the same on every rank; reads `image`, `text` [b, d]."""
        image, text = (need(features, name, self) for name in self.needs)
        squares, products = _traces(image, text, batch.get(WEIGHT))
        return {"in_modal": (squares + products) / 2}


def _traces(
    image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], weights: Float[Tensor, "b"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Returns <P'P, M'M>/B and <P'M, M'P>/B of the global batch.

    With weights W of the samples i they are (<P'WP, M'M> + <M'WM, P'P>) / (2 sum of W) and
    <P'WM, M'P> / (sum of W).
    """
    image, text = full_precision(image, text)
    with torch.autocast(image.device.type, enabled=False):
        plus, minus = image + text, image - text
        grams = total(
            torch.stack([multiply(plus.T, plus), multiply(minus.T, minus), multiply(plus.T, minus)])
        )
        if weights is None:
            size = total(grams.new_full((), float(len(image)))).clamp_min(1.0)
            squares, products = (grams[0] * grams[1]).sum(), (grams[2] * grams[2].T).sum()
            return squares / size, products / size
        rows = weights.to(plus)[:, None]
        by_weight = torch.stack([multiply(plus.T, rows * plus), multiply(minus.T, rows * minus)])
        by_weight, cross = total(by_weight), total(multiply(plus.T, rows * minus))
        size = total(rows.sum()).clamp_min(torch.finfo(rows.dtype).tiny)
        squares = (by_weight[0] * grams[1] + by_weight[1] * grams[0]).sum() / 2
        products = (cross * grams[2].T).sum()
    return squares / size, products / size
