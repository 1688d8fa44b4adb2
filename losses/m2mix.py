"""Geodesic mixup between the modalities (m2-mix): negatives from between an image and its text.

m_i = slerp(u_i, v_i; lambda) with one lambda ~ Beta(1/2, 1/2) a step. Each anchor has its own pair
as the positive and the mixtures of all other samples as negatives:
L = CE_r(A) + CE_r(B), A_ii = B_ii = u_i.v_i / t, A_ij = u_i.m_j / t, B_ij = v_i.m_j / t, t = 0.07.
Gradients flow through the mixtures. Oh et al., "Geodesic Multi-Modal Mixup for Robust Fine-Tuning"
(2023), section 4. It stands beside InfoNCE with a small weight (0.001 to 0.05 in the paper).
"""

import math
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors, need
from .distributed.collectives import total
from .kernels.keyed_random import STEP
from .kernels.reductions import row_sums
from .scalars import Fixed, Scalar


class M2Mix(PairwiseTerm):
    """Sum over both modalities of the cross-entropy against mixed negatives.

    Args:
        scale: inverse temperature: a scalar of its own (1/0.07 by default, not learned), or the
            name of a feature.
        pairwise: of `PairwiseTerm`.
    """

    name = "m2mix"
    needs = ("image", "text", "key")

    def __init__(self, scale: Scalar | str | None = None, **pairwise: Any):
        super().__init__(scale=Fixed(1 / 0.07) if scale is None else scale, **pairwise)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Sum of both directions of each pair; reads `image`, `text` [b, d] and the batch's `key`.

        `progress`, the fraction of the run done, is read if present.
        """
        image, text = self.take(features, "image", "text")
        progress = float(features["progress"]) if "progress" in features else 0.0
        share = mixing_share(need(batch, "key", self), progress)
        mixed = slerp(image, text, share.to(image.dtype))
        scale, others = self.logit_scale(features), self.pairing(pairs="others")
        positive = scale * (image * text).sum(1)
        losses = [
            torch.logaddexp(row_sums(anchors, mixed, scale, others), positive) - positive
            for anchors in (image, text)
        ]
        return losses[0] + losses[1]


def mixing_share(key: Int64[Tensor, "b"], progress: float = 0.0) -> Float[Tensor, ""]:
    """Draws lambda ~ Beta(1/2, 1/2) in float64, the same on all ranks and after a resume.

    It is a hash of which samples are in the global batch, and of the step: sums of 64-bit hashes do
    not depend on how the samples lie on ranks. The host does not wait for it.

    Args:
        key: hashes of this rank's samples.
        progress: fraction of the run done, so that the same batch is mixed anew.
    """
    # Arithmetic modulo 2^64; the upper 53 bits are a uniform number.
    bits = total(key.sum()) + _signed(int(progress * 2**52) * STEP)
    uniform = ((bits >> 11) & (2**53 - 1)).double() / 2**53
    # Beta(1/2, 1/2) is the arcsine law: its inverse distribution function is this.
    return (uniform * (math.pi / 2)).sin().square()


def slerp(
    start: Float[Tensor, "b d"], end: Float[Tensor, "b d"], share: Float[Tensor, ""]
) -> Float[Tensor, "b d"]:
    """Returns the points at `share` of the way on the great circle between unit vectors.

    Finite everywhere, with gradients: nearly equal or opposite vectors are mixed with the weights
    of the smallest angle (or the largest) that the precision resolves, which for equal ones are
    those of the straight line. Opposite vectors have no one great circle.
    """
    margin = torch.finfo(start.dtype).eps ** 0.5
    cosine = (start * end).sum(1, keepdim=True).clamp(-1 + margin, 1 - margin)
    angle = torch.acos(cosine)
    weights = (((1 - share) * angle).sin(), (share * angle).sin())
    return (weights[0] * start + weights[1] * end) / angle.sin()


def _signed(number: int) -> int:
    """The signed 64-bit number with the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
