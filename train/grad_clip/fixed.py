"""The fixed limit on the global norm."""

import torch
from torch import Tensor

from .base import Threshold


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
                f"clip.max_norm is {max_norm}: it must be > 0 (no clipping: clip=null)"
            )
        super().__init__()
        self.max_norm = max_norm

    def threshold(self, norm: Tensor) -> Tensor:
        """The same at every step."""
        return torch.full_like(norm, self.max_norm)
