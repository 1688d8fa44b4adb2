"""Patches hidden behind a learned token: the sequence keeps its length, the tower learns to guess.

In: the patches that another reducer keeps. Out: all patches, with the others hidden. Bao et al.,
"BEiT: BERT Pre-Training of Image Transformers" (2022), section 2.3; for CLIP, Tschannen et al.,
"SigLIP 2" (2025), section 2.3.
"""

import torch

from ..image import ImageTower
from .base import Grid, ImageReducer, Keys, Patches, Reduction, WrappedReducer


class MaskTokens(WrappedReducer):
    """Puts a learned token in the place of each patch that another reducer leaves out.

    The token is a parameter of the image tower in all phases of a run that has such a phase. It
    gets the position of the patch.

    Args:
        of: chooses the patches that stay visible.
    """

    def __init__(self, of: ImageReducer):
        super().__init__(of)

    def prepare(self, tower: ImageTower) -> None:
        super().prepare(tower)
        tower.learn_mask_token()

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches | None:
        patches = super().keep(grid, keys, view, reduction)
        if patches is None:
            return None
        kept = patches.kept
        indices = torch.arange(grid[0] * grid[1], device=kept.device).expand(len(kept), -1)
        hidden = torch.ones_like(indices, dtype=torch.bool).scatter(1, kept, False)
        return Patches(indices, hidden, indices.shape[1] - kept.shape[1])
