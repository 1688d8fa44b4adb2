"""Softmax contrastive loss with softened targets: negatives are not wholly wrong (LightCLIP).

L = -1/(2B) sum_ij [ q_ij log p_ij + q_ij' log p_ij' ] with p the softmax of s u_i.v_j over a row
(p', q': over a column) and q = (1 - a) [i = j] + a r_ij, r uniform (label smoothing) or the
softmax of similarities within a modality. Nie et al., "LightCLIP: Learning Multi-Level Interaction
for Lightweight Vision-Language Models" (2023) softens the labels of negatives progressively during
training. Its schedule and amount were not found: that `a` grows on a straight line, and that r is
uniform over all columns, is our reading.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import PairwiseTerm
from .components.features import Tensors
from .kernels.pairing import Operands, Pairing, Target
from .kernels.reductions import row_sums, softmax_sums
from .kernels.targets import Uniform
from .kernels.tile_ops import multiply
from .weight_schedules import Weight


class Softening(ABC):
    """What the targets are softened to."""

    @abstractmethod
    def target(
        self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], pairing: Pairing
    ) -> Target:
        """Returns r; collectives as the pairing's exchange has them."""


class Evenly(Softening):
    """The same on every column: label smoothing."""

    def target(
        self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], pairing: Pairing
    ) -> Target:
        return Uniform()


class ByNeighbours(Softening):
    """softmax_j(k u_i.u_j) for an image's texts, softmax_i(k v_j.v_i) for a text's images.

    Texts of images that the towers find similar are less wrong than others; the targets get no
    gradient.

    Args:
        scale: k, an inverse temperature; the larger it is, the more is left on the sample itself.
    """

    def __init__(self, scale: float = 10.0):
        self.scale = scale

    def target(
        self, image: Float[Tensor, "b d"], text: Float[Tensor, "b d"], pairing: Pairing
    ) -> Target:
        """Returns the distributions, for which their normalisers are computed first."""
        return _Neighbours(image.detach(), text.detach(), self.scale, pairing)


class Softened(PairwiseTerm):
    """Mean over both directions of the cross-entropy with softened targets.

    Args:
        amount: a, the part of a target that is softened: a number, or a function of the fraction of
            the run done (`weights.Ramp`; the feature `progress`, 1 where there is none).
        softening: what the targets are softened to; by default all columns alike.
        pairwise: of `PairwiseTerm`.
    """

    name = "softened"
    needs = ("image", "text")

    def __init__(
        self, amount: float | Weight = 0.1, softening: Softening | None = None, **pairwise: Any
    ):
        super().__init__(**pairwise)
        self.amount = amount
        self.softening = softening or Evenly()

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean of both directions of each pair; reads `image`, `text` [b, d] and `progress`.

        Raises:
            ValueError: the amount is no fraction.
        """
        image, text = self.take(features, *self.needs)
        amount = self.amount
        if callable(amount):
            amount = amount(float(features["progress"]) if "progress" in features else 1.0)
        if not 0 <= amount <= 1:
            raise ValueError(f"Softened has the amount {amount:g}: it must lie between 0 and 1")
        target = self.softening.target(image, text, self.pairing())
        pairing = self.pairing(diagonal=1 - amount, targets=((amount, target),))
        sums = softmax_sums(image, text, self.logit_scale(features), pairing)
        return sums.cross_entropy()


class _Neighbours:
    """The target of `ByNeighbours`: features and their log normalisers."""

    def __init__(self, image: Tensor, text: Tensor, scale: float, pairing: Pairing):
        self.scale = scale
        one = image.new_full((1,), scale)
        with torch.no_grad():
            by_image, by_text = (row_sums(x, x, one, pairing) for x in (image, text))
        self.rows, self.columns = (image, by_image, text), (image, text, by_text)

    def tile(self, rows: Operands, columns: Operands, total: int) -> tuple[Tensor, Tensor]:
        of_rows = multiply(rows[0], columns[0].T).mul_(self.scale).sub_(rows[1][:, None]).exp_()
        of_columns = multiply(rows[2], columns[1].T).mul_(self.scale).sub_(columns[2]).exp_()
        return of_rows, of_columns
