"""Limits that stay the same: on the global norm, on every element, none."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..strategies.sharded_tensors import Tensors
from .base import Clipped, Clipper, Threshold


class Norm(Threshold):
    """Scales the gradient down to `max_norm` (Pascanu et al. 2013, section 3.2).

    Args:
        max_norm: CLIP-like runs use 1 (MobileCLIP, SigLIP) or 5 (EVA-CLIP, TinyCLIP).
    """

    def __init__(self, max_norm: float = 1.0):
        if max_norm <= 0:
            raise ValueError(
                f"grad_clip.max_norm is {max_norm}: it must be > 0 (no clipping: grad_clip=null)"
            )
        super().__init__()
        self.max_norm = max_norm

    def threshold(self, norm: Tensor) -> Tensor:
        return torch.full_like(norm, self.max_norm)


class Value(Clipper):
    """Clamps every element of the gradient to [-limit, limit]; changes its direction.

    Args:
        limit: in units of the gradient.
    """

    def __init__(self, limit: float = 1.0):
        if limit <= 0:
            raise ValueError(
                f"grad_clip.limit is {limit}: it must be > 0 (no clipping: grad_clip=null)"
            )
        self.limit = limit

    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        parameters = list(named.values())
        norm = tensors.norms([parameters])[0]
        tensors.clamp(parameters, self.limit)
        return Clipped(norm)


class Unclipped(Clipper):
    """Measures the norm and changes nothing."""

    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        return Clipped(tensors.norms([list(named.values())])[0])
