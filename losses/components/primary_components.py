"""Features rebuilt from the directions in which the global batch varies most (PCA).

In: this rank's features. Out: the same, with all but their first components replaced by the mean of
the batch. Mean and covariance are those of all ranks, so that the directions are as well.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributed.collectives import total

# Of the largest eigenvalue: of two that are nearer to each other than this, which one is the larger
# is an accident, and the exact derivative would be without bound.
NEAR = 1e-6


def primary_components(features: Float[Tensor, "b d"], num_components: int) -> Float[Tensor, "b d"]:
    """Returns mean + (x - mean) P, P the projection on the first principal directions.

    Gradients go through mean and directions. Zhang et al., "Long-CLIP: Unlocking the Long-Text
    Capability of CLIP" (2024), section 3.2.

    Args:
        features: of this rank, float32 or float64; ranks may have any number of rows.
        num_components: how many directions stay.
    """
    with torch.autocast(features.device.type, enabled=False):
        sums = total(torch.cat([features.sum(0), features.new_full((1,), float(len(features)))]))
        mean = sums[:-1] / sums[-1].clamp_min(1.0)
        centred = features - mean
        # What travels is d x d, for any batch. Every rank has the same bits of it, and finds the
        # same directions.
        scatter = total(centred.T @ centred)
        projection: Tensor = _Projection.apply(scatter, num_components)  # type: ignore[assignment]
        return mean + centred @ projection


class _Projection(torch.autograd.Function):
    """Symmetric matrix [d, d] to the projection on its k eigenvectors of largest eigenvalues.

    The gradient of eigenvectors themselves divides by the difference of any two eigenvalues; that
    of the projection only by differences between one that stays and one that goes: ties among
    those that stay are harmless.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, num_components: int) -> Tensor:
        # In double precision: float32 would lose half of the digits of small differences.
        values, vectors = torch.linalg.eigh(matrix.double())
        ctx.kept = min(num_components, len(values))
        ctx.save_for_backward(values, vectors)
        first = vectors[:, len(values) - ctx.kept :]
        return (first @ first.T).to(matrix.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        cut = len(values) - ctx.kept
        rest, first = vectors[:, :cut], vectors[:, cut:]
        gap = values[None, cut:] - values[:cut, None]
        near = NEAR * values[-1].abs().clamp_min(torch.finfo(values.dtype).tiny)
        # 1 / gap, and 0 where there is none.
        inverse = gap / (gap.square() + near.square())
        grad = grads[0].double()
        turned = (rest.T @ (grad + grad.T) @ first) * inverse
        found = rest @ turned @ first.T
        return ((found + found.T) / 2).to(grads[0].dtype), None
