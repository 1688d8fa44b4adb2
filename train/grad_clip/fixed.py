"""The fixed limit on the global norm."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..strategies.sharded_tensors import Tensors
from .base import Clipped, Clipper, Threshold


class Norm(Threshold):
    """Scales the gradient down to `max_norm` (Pascanu et al. 2013, section 3.2).

    Args:
        max_norm: CLIP-like runs use 1 (MobileCLIP, SigLIP) or 5 (EVA-CLIP, TinyCLIP).

    Raises:
        ValueError: it is not positive.
    """

    def __init__(self, max_norm: float = 1.0):
        if max_norm <= 0:
            raise ValueError(
                f"grad_clip.max_norm is {max_norm}: it must be > 0 (no clipping: grad_clip=null)"
            )
        super().__init__()
        self.max_norm = max_norm

    def threshold(self, norm: Tensor) -> Tensor:
        """The same at every step."""
        return torch.full_like(norm, self.max_norm)


class Value(Clipper):
    """Clamps every element of the gradient to [-limit, limit]; changes its direction.

    Args:
        limit: in units of the gradient.

    Raises:
        ValueError: it is not positive.
    """

    def __init__(self, limit: float = 1.0):
        if limit <= 0:
            raise ValueError(
                f"grad_clip.limit is {limit}: it must be > 0 (no clipping: grad_clip=null)"
            )
        self.limit = limit

    def clip(self, shares: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        """Clamps."""
        parameters = list(named.values())
        norm = shares.norms([parameters])[0]
        shares.clamp(parameters, self.limit)
        return Clipped(norm)


class Unclipped(Clipper):
    """Measures only."""

    def clip(self, shares: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        """The norm."""
        return Clipped(shares.norms([list(named.values())])[0])


def trainers_clipper(value: float | None, algorithm: str | None) -> Clipper:
    """What the trainer's `gradient_clip_val` and `gradient_clip_algorithm` ask for."""
    if not value:
        return Unclipped()
    return Value(value) if algorithm == "value" else Norm(value)


def check_no_other(clipper: Clipper | None, gradient_clip_val: float | None) -> None:
    """Refuses two clippers, one after the other.

    Raises:
        ValueError: a clipper is named and the trainer clips as well.
    """
    if clipper is not None and gradient_clip_val:
        raise ValueError(
            f"clip names {type(clipper).__name__} and trainer.gradient_clip_val is "
            f"{gradient_clip_val}: set trainer.gradient_clip_val=null, one of them clips"
        )
