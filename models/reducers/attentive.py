"""Attentive masking (A-CLIP): keeps the patches that the student's moving average attends to.

In: the average's attention to a crop, and the augmentation parameters of that crop and of the views
cut from the same image. Out: a score for every patch of every view, and the indices of the patches
with the highest. Yang et al., "Attentive Mask CLIP" (2023), section 3.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..attention import class_token_blocks
from ..image import ImageTower
from .base import Grid, ImageReducer, Keys, Patches, Reduction, Scores, Tensors, Views

# Of `NAME.augmentation`: where in the image a view lies, and how it is turned.
PLACE = ("top", "left", "rows", "columns", "flip", "angle", "right", "down")


class AttentivePatches(ImageReducer):
    """Keeps the cells of patches with the highest scores, as many for every image.

    Args:
        drop: fraction of the cells left out (the number kept is rounded up: 25 of 49).
        cell: side of a cell in patches.
        sees: batch entry that the average looks at: a crop that holds all views. It may be smaller
            than they are, which costs less.

    Raises:
        ValueError: a value is out of range.
    """

    def __init__(self, drop: float = 0.5, cell: int = 2, sees: str = "image.whole"):
        if not 0 <= drop < 1 or cell < 1:
            raise ValueError(
                f"AttentivePatches has drop={drop} and cell={cell}; give a share below 1 and 1 or "
                "more patches"
            )
        self.drop = drop
        self.cell = cell
        self.sees = sees
        self.needs = (f"ema.{sees}.attention",)

    def prepare(self, tower: ImageTower) -> None:
        # Its attention to the patches is what is read.
        class_token_blocks(tower)

    def check_views(self, tower: ImageTower, views: Views, scored: Sequence[str]) -> None:
        """Checks that batches hold the position of every view in the image."""
        placed = {n: v for n, v in views.items() if v.augmentation[: len(PLACE)] == PLACE}
        for view in (self.sees, *scored):
            if view not in placed:
                raise ValueError(
                    f"AttentivePatches needs to know where '{view}' lies in the image, and there "
                    f"are {sorted(placed)}: make it in data.views, with a TrainTransform or an "
                    "EnclosingCrop"
                )
        side = placed[self.sees].size
        tower.grid(torch.empty(1, 3, side, side, dtype=torch.uint8))

    def scores(self, features: Tensors, batch: Tensors, grids: Mapping[str, Grid]) -> Scores:
        """Reads the attention at the positions of each view's patches."""
        attention, whole = features[self.needs[0]], _place(batch, self.sees)
        return {v: resample_scores(attention, whole, _place(batch, v), g) for v, g in grids.items()}

    def keep(self, grid: Grid, keys: Keys, view: str, reduction: Reduction) -> Patches:
        """Keeps the patches of the cells with the highest mean score.

        Raises:
            ValueError: the grid does not divide into cells, or the view has no scores.
        """
        rows, columns = (side // self.cell for side in grid)
        if (rows * self.cell, columns * self.cell) != grid:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} patches does not divide into cells of "
                f"{self.cell} x {self.cell}; use cell=1 or another image size"
            )
        if view not in reduction.scores:
            raise ValueError(
                f"AttentivePatches needs scores of '{view}', and there are "
                f"{sorted(reduction.scores)}; set an ema and a view for it to look at, or use "
                "RandomPatches"
            )
        cells = F.avg_pool2d(reduction.scores[view][:, None], self.cell).flatten(1)
        num_kept = math.ceil(rows * columns * (1 - self.drop))
        best = cells.argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        first = best // columns * self.cell * grid[1] + best % columns * self.cell
        inside = torch.arange(self.cell, device=first.device)
        inside = (inside[:, None] * grid[1] + inside).flatten()
        return Patches((first[:, :, None] + inside).flatten(1).sort(dim=1).values)


def resample_scores(
    scores: Float[Tensor, "n h w"],
    whole: Float[Tensor, "n 8"],
    part: Float[Tensor, "n 8"],
    grid: Grid,
) -> Float[Tensor, "n rows columns"]:
    """Reads scores of one view at the patches of another view of the same image.

    Args:
        scores: of the patches of the view `whole`.
        whole: its `PLACE`, in pixels of the image, degrees and fractions of the side.
        part: that of the view to score; what lies outside `whole` takes its edge's scores.
        grid: rows and columns of patches of `part`.
    """
    matrices = (inverse(view_to_image(whole)) @ view_to_image(part))[:, :2].to(scores.dtype)
    positions = F.affine_grid(matrices, [len(scores), 1, *grid], align_corners=False)
    # Bilinear between the centres of patches, as resizing the map would be.
    resampled = F.grid_sample(
        scores[:, None], positions, padding_mode="border", align_corners=False
    )
    return resampled[:, 0]


def view_to_image(place: Float[Tensor, "n 8"]) -> Float[Tensor, "n 3 3"]:
    """Matrices from (x, y, 1) in a view, -1 to 1 across it, to pixels of the image."""
    top, left, rows, columns, flip, angle, right, down = place.double().unbind(1)
    cosine, sine, side = angle.deg2rad().cos(), angle.deg2rad().sin(), 1 - 2 * flip
    right, down, none, one = 2 * right, 2 * down, torch.zeros_like(top), torch.ones_like(top)
    # As in data/images/pixels.py: mirrored, rotated counter-clockwise, then shifted.
    turned = [
        [side * cosine, -side * sine, side * (sine * down - cosine * right)],
        [sine, cosine, -sine * right - cosine * down],
        [none, none, one],
    ]
    cut = [
        [columns / 2, none, left + columns / 2],
        [none, rows / 2, top + rows / 2],
        [none, none, one],
    ]
    return _matrices(cut) @ _matrices(turned)


def inverse(maps: Float[Tensor, "n 3 3"]) -> Float[Tensor, "n 3 3"]:
    """Inverts affine maps of the plane, in elementwise operations.

    A library of matrices would be asked for one of nine numbers; `inv` also waits for a GPU.
    """
    (a, b, x), (c, d, y) = (row.unbind(1) for row in maps[:, :2].unbind(1))
    none, one = torch.zeros_like(a), torch.ones_like(a)
    scaled = [[d, -b, b * y - d * x], [-c, a, c * x - a * y]]
    size = a * d - b * c
    rows = [[entry / size for entry in row] for row in scaled]
    return _matrices([*rows, [none, none, one]])


def _place(batch: Tensors, view: str) -> Float[Tensor, "n 8"]:
    return batch[f"{view}.augmentation"][:, : len(PLACE)]


def _matrices(rows: list[list[Tensor]]) -> Float[Tensor, "n 3 3"]:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
