"""Patches hidden behind a learned token: the sequence keeps its length, the tower learns to guess.

In: what another reducer keeps. Out: indices of all patches, those that it leaves out marked. Bao et
al., "BEiT: BERT Pre-Training of Image Transformers" (2022), section 2.3; for CLIP, Tschannen et
al., "SigLIP 2" (2025), section 2.3.
"""

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..image import ImageTower
from .base import ImageReducer, Reduction


class MaskTokens(ImageReducer):
    """Puts a learned token in the place of each patch that another reducer leaves out.

    The token is a parameter of the image tower in all phases of a run that has such a phase. It
    gets the position of the patch.

    Args:
        of: What chooses the patches that stay visible.
    """

    def __init__(self, of: ImageReducer):
        self.of = of
        self.sees = of.sees

    def prepare(self, tower: ImageTower) -> None:
        """Gives the tower the token.

        Raises:
            ValueError: It cannot have one.
        """
        self.of.prepare(tower)
        tower.learn_mask_token()

    def pixels(self, image: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n 3 h2 w2"]:
        """As the other reducer."""
        return self.of.pixels(image)

    def keep(
        self, grid: tuple[int, int], keys: Int64[Tensor, " n"], view: str, reduction: Reduction
    ) -> Int64[Tensor, "n k"] | None:
        """Keeps every place; `~i` where patch `i` is hidden."""
        kept = self.of.keep(grid, keys, view, reduction)
        if kept is None:
            return None
        places = torch.arange(grid[0] * grid[1], device=kept.device).expand(len(kept), -1)
        hidden = torch.ones_like(places, dtype=torch.bool).scatter(1, kept, False)
        return torch.where(hidden, ~places, places)
