"""Adaptive gradient clipping: each output unit against its own weights."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from ..strategies.sharded_tensors import Tensors
from .base import Clipped, Clipper


class AGC(Clipper):
    """Keeps |gradient| <= ratio * max(|weight|, eps) for every row (Brock et al. 2021, section 4).

    A row is what feeds one output unit (an embedding's row: one token). Gains, biases, the logit
    scale and bias have no rows and are left alone; so is what `skip` names, as the paper leaves out
    the last layer.

    Args:
        ratio: the paper's lambda.
        eps: the least norm a row is taken to have.
        skip: patterns of parameter names.
    """

    def __init__(
        self,
        ratio: float = 0.01,
        eps: float = 1e-3,
        skip: Sequence[str] = ("image_projection.*", "text_projection.*", "objective.*"),
    ):
        if ratio <= 0:
            raise ValueError(
                f"grad_clip.ratio is {ratio}: it must be > 0 (no clipping: grad_clip=null)"
            )
        self.ratio, self.eps, self.skip = ratio, eps, tuple(skip)

    @torch.no_grad()
    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        norm = tensors.norms([list(named.values())])[0]
        matrices = [
            parameter
            for name, parameter in named.items()
            if parameter.ndim >= 2 and not any(fnmatch(name, pattern) for pattern in self.skip)
        ]
        for weight, gradient in tensors.rows(matrices):
            gradient.mul_(row_factors(weight, gradient, self.ratio, self.eps).to(gradient.dtype))
        return Clipped(norm)


def row_factors(weight: Tensor, gradient: Tensor, ratio: float, eps: float) -> Tensor:
    """Returns what each row of a gradient is multiplied by [rows, 1, ...]."""
    dims = tuple(range(1, weight.ndim))
    limit = torch.linalg.vector_norm(weight, dim=dims, keepdim=True).clamp(min=eps) * ratio
    size = torch.linalg.vector_norm(gradient, dim=dims, keepdim=True)
    return (limit / size.clamp(min=1e-12)).clamp(max=1.0)
