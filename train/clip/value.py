"""The fixed limit on every element."""

from collections.abc import Mapping

import torch
from torch import nn

from .clipper import Clipped, Clipper
from .gradients import Gradients


class Value(Clipper):
    """Clamps every element of the gradient to [-limit, limit]; changes its direction.

    Args:
        limit: in units of the gradient.

    Raises:
        ValueError: it is not positive.
    """

    def __init__(self, limit: float = 1.0):
        if limit <= 0:
            raise ValueError(f"clip.limit is {limit}: it must be > 0 (no clipping: clip=null)")
        self.limit = limit

    @torch.no_grad()
    def clip(self, gradients: Gradients, named: Mapping[str, nn.Parameter]) -> Clipped:
        """Clamps."""
        parameters = list(named.values())
        norm = gradients.norms([parameters])[0]
        if pieces := gradients.pieces(parameters):
            torch._foreach_clamp_min_(pieces, -self.limit)
            torch._foreach_clamp_max_(pieces, self.limit)
        return Clipped(norm)
