"""The fixed limit on every element."""

from collections.abc import Mapping

from torch import nn

from ..grad_clip.base import Clipped, Clipper
from ..strategies.sharded_tensors import Shares


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

    def clip(self, shares: Shares, named: Mapping[str, nn.Parameter]) -> Clipped:
        """Clamps."""
        parameters = list(named.values())
        norm = shares.norms([parameters])[0]
        shares.clamp(parameters, self.limit)
        return Clipped(norm)
