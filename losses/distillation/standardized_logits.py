"""Distillation of standardised logits (LumiNet): how far a pair stands out, on both sides.

A text's similarities to all images of the global batch are shifted to mean 0 and scaled to variance
1, for the student and for the teacher; then an image's softmax over the texts follows the
teacher's: CE(softmax_j(T_ij / t), softmax_j(S_ij / t)). The same with texts and images exchanged,
and the mean of both. Hossain et al., "LumiNet: Perception-Driven Knowledge Distillation via
Statistical Logit Calibration" (2023), where the columns are the classes of a classifier; for pairs
of a batch it is our reading, unpublished. A logit scale would cancel. The
cross-entropy exceeds the authors' Kullback-Leibler divergence by the entropy of the target, and
their factor (4) is the weight of the term.

No matrix of logits is needed for its statistics: with the mean m and the covariance C of the images
x, the mean over i of x_i.y_j is m.y_j and the variance is y_j.C y_j. So standardised similarities
are products of x_i - m and y_j / sqrt(y_j.C y_j + eps).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..components.features import Tensors
from ..distributed.collectives import total
from ..kernels.reductions import softmax_sums
from ..kernels.targets import Soft
from ..kernels.tile_ops import multiply
from .base import TeacherTerm


class StandardizedLogits(TeacherTerm):
    """Mean over both directions of the cross-entropy of standardised similarities.

    Statistics are those of the global batch, whatever the exchange.

    Args:
        teachers: prefixes of the teachers' features (see `TeacherTerm`). Several are averaged after
            the softmax.
        temperature: t (LumiNet: 0.7 on ImageNet, 4 on CIFAR).
        eps: added to the variance of similarities.
        pairwise: of `TeacherTerm`.

    Raises:
        ValueError: no teachers, or a temperature or eps that is not above 0.
    """

    name = "standardised"

    def __init__(
        self, teachers: Sequence[str], temperature: float = 0.7, eps: float = 1e-5, **pairwise: Any
    ):
        if temperature <= 0 or eps <= 0:
            raise ValueError(f"temperature={temperature} and eps={eps} must be above 0")
        super().__init__(teachers, form="", scale="logit_scale", **pairwise)
        self.temperature, self.eps = temperature, eps

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        mine, *theirs = self.sides(features, batch)
        of_images = self._one_way(mine, theirs)
        of_texts = self._one_way(mine[::-1], [pair[::-1] for pair in theirs])
        return (of_images + of_texts) / 2

    def _one_way(
        self, mine: Sequence[Tensor], theirs: Sequence[Sequence[Tensor]]
    ) -> Float[Tensor, "b"]:
        """Cross-entropies of the rows' softmax over columns that are standardised over the rows."""
        scale = mine[0].new_full((1,), 1 / self.temperature)
        with torch.no_grad():
            lifted = [self._lift(*pair) for pair in theirs]
        soft = [Soft(rows, columns, scale, self.pairing()) for rows, columns in lifted]
        targets = tuple((1 / len(soft), target) for target in soft)
        rows, columns = self._lift(*mine)
        sums = softmax_sums(rows, columns, scale, self.pairing(diagonal=0.0, targets=targets))
        return sums.rows - sums.row_targets

    def _lift(
        self, rows: Float[Tensor, "b d"], columns: Float[Tensor, "b d"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]:
        """Returns the vectors whose products are the standardised ones."""
        sums = total(torch.cat([rows.sum(0), rows.new_full((1,), float(len(rows)))]))
        count = sums[-1].detach().clamp_min(1.0)
        centred = rows - sums[:-1] / count
        with torch.autocast(rows.device.type, enabled=False):
            covariance = total(multiply(centred.T, centred)) / count
            variance = (multiply(columns, covariance) * columns).sum(1, keepdim=True).clamp_min(0.0)
        return centred, columns * (variance + self.eps).rsqrt()
