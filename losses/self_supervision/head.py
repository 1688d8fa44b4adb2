"""The head of self-distillation: features in, directions out that are compared with prototypes.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (2021, DINO), section 3.1
and appendix C: an MLP of three layers with GELU, length one, prototypes of length one.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..components.features import full_precision


class PrototypeHead(nn.Module):
    """Three linear layers with GELU between them, and prototypes.

    Args:
        width: of the features.
        hidden: of the two hidden layers.
        bottleneck: of what is compared with the prototypes.
        prototypes: how many there are (K).

    Attributes:
        weight: of the prototypes [prototypes, bottleneck], before they get length one.
    """

    def __init__(
        self,
        width: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        prototypes: int = 65536,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.width = width
        self.weight = nn.Parameter(torch.randn(prototypes, bottleneck) * bottleneck**-0.5)

    def forward(self, rows: Float[Tensor, "n width"]) -> Float[Tensor, "n bottleneck"]:
        """Returns directions of length one, in full precision."""
        (made,) = full_precision(self.layers(rows.to(self.weight.dtype)))
        return F.normalize(made, dim=1)

    def prototypes(self) -> Float[Tensor, "k bottleneck"]:
        """Returns the prototypes, of length one, in full precision."""
        (weight,) = full_precision(self.weight)
        return F.normalize(weight, dim=1)
