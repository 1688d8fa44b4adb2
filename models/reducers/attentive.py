"""Attentive masking (A-CLIP): the patches that a slowly moving image tower looks at stay.

In: a crop that the averaged tower sees whole, and the augmentation parameters of that crop and of
the views cut from the same picture. Out: a score for every patch of every view, and the indices of
the patches with the highest. Yang et al., "Attentive Mask CLIP" (2023), section 3.

`train/features.py` owns the averaged tower: it lets it run, and puts the scores into
`Reduction.scores` before the trained towers run.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int64, UInt8
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from ..image import ImageTower
from .base import ImageReducer, Reduction

# Of `NAME.augmentation`: where in the picture a view lies, and how it is turned.
PLACE = ("top", "left", "rows", "columns", "flip", "angle", "right", "down")

Result = TypeVar("Result")


class AttentivePatches(ImageReducer):
    """Keeps the cells of patches with the highest scores, as many for every picture.

    Args:
        drop: Share of the cells left out (the number kept is rounded up: 25 of 49).
        cell: Side of a cell in patches.
        sees: Batch entry that the averaged tower looks at: a crop that holds all views. It may be
            smaller than they are, which costs less.

    Raises:
        ValueError: A value is out of range.
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

    def prepare(self, tower: ImageTower) -> None:
        """Looks whether the tower has what is looked at.

        Raises:
            ValueError: It has no class token, or unusual blocks.
        """
        plain_blocks(tower)

    def keep(
        self, grid: tuple[int, int], keys: Int64[Tensor, " n"], view: str, reduction: Reduction
    ) -> Int64[Tensor, "n k"]:
        """Keeps the patches of the best cells.

        Raises:
            ValueError: The grid does not divide into cells, or nobody scored this view.
        """
        rows, columns = (side // self.cell for side in grid)
        if (rows * self.cell, columns * self.cell) != grid:
            raise ValueError(
                f"a grid of {grid[0]} x {grid[1]} patches does not divide into cells of "
                f"{self.cell} x {self.cell}; use cell=1 or another image size"
            )
        if view not in reduction.scores:
            raise ValueError(
                f"AttentivePatches needs scores of '{view}', which nobody computes; set an ema and "
                "a view for it to look at, or use RandomPatches"
            )
        cells = F.avg_pool2d(reduction.scores[view][:, None], self.cell).flatten(1)
        num_kept = math.ceil(rows * columns * (1 - self.drop))
        best = cells.argsort(dim=1, descending=True, stable=True)[:, :num_kept]
        first = best // columns * self.cell * grid[1] + best % columns * self.cell
        inside = torch.arange(self.cell, device=first.device)
        inside = (inside[:, None] * grid[1] + inside).flatten()
        return (first[:, :, None] + inside).flatten(1).sort(dim=1).values


def attended(
    tower: ImageTower, image: UInt8[Tensor, "n 3 h w"], run: Callable[[], Result]
) -> tuple[Result, Float[Tensor, "n rows columns"]]:
    """Lets a tower run on pictures and tells what its class token looks at meanwhile.

    Of each attention map only the class token's row is computed (one more projection to keys a
    layer, about 8% of it); the blocks themselves keep their fused attention, or are compiled. They
    are listened to while they run: sharded weights are whole then.

    Args:
        tower: With a class token.
        image: The pictures.
        run: Calls the tower on these pictures alone, at once or part by part.

    Returns:
        What `run` does, and the class token's attention to each patch, averaged over all layers and
        heads.

    Raises:
        ValueError: The tower has no class token, or has unusual blocks.
    """
    blocks, grid = plain_blocks(tower), tower.grid(image)
    rows: dict[Any, list[Tensor]] = {block: [] for block in blocks}

    def look(block: Any, given: tuple[Tensor]) -> None:
        rows[block].append(class_row(block, *given))

    hooks = [block.register_forward_pre_hook(look) for block in blocks]
    try:
        result = run()
    finally:
        for hook in hooks:
            hook.remove()
    layers = torch.stack([torch.cat(parts) for parts in rows.values()])
    assert layers.shape[1] == len(image), "the tower sees each picture once"
    # Class and register tokens come first.
    patches = layers.mean(dim=0)[:, -grid[0] * grid[1] :]
    return result, patches.unflatten(1, grid)


def plain_blocks(tower: ImageTower) -> list[Block]:
    """Returns the blocks of a ViT.

    Raises:
        ValueError: It is none of timm's with a class token, or its blocks or their attention are
            not timm's usual ones.
    """
    blocks: list[Any] = list(tower.layers())
    # By their forward: sharding makes a class of its own of each kind of block.
    are_plain = all(
        type(block).forward is Block.forward and type(block.attn).forward is Attention.forward
        for block in blocks
    )
    if not tower.has_class_token or not blocks or not are_plain:
        raise ValueError(
            "attentive masking reads the attention of the class token in timm's usual blocks, and "
            "the image tower has none; use a TimmTower with class_token: true in its model_args, "
            "or RandomPatches"
        )
    return blocks


def class_row(block: Block, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t"]:
    """The first token's row of a block's attention map, averaged over heads."""
    attention = block.attn
    assert isinstance(attention, Attention)
    layer, x = attention.qkv, block.norm1(x)
    weights = layer.weight.unflatten(0, (3, -1))
    biases = (None,) * 3 if layer.bias is None else layer.bias.unflatten(0, (3, -1))
    query = F.linear(x[:, :1], weights[0], biases[0]).unflatten(2, (attention.num_heads, -1))
    keys = F.linear(x, weights[1], biases[1]).unflatten(2, (attention.num_heads, -1))
    query, keys = attention.q_norm(query), attention.k_norm(keys)
    # Full precision: coarse numbers would often be equal, and cells be chosen by their place.
    kind = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        query, keys = query.to(kind) * attention.scale, keys.to(kind)
        logits = torch.einsum("nqhd,nthd->nht", query, keys)
        return logits.softmax(dim=-1).mean(dim=1)


def moved(
    scores: Float[Tensor, "n h w"],
    whole: Float[Tensor, "n 8"],
    part: Float[Tensor, "n 8"],
    grid: tuple[int, int],
) -> Float[Tensor, "n rows columns"]:
    """Reads scores of one view at the patches of another view of the same picture.

    Args:
        scores: Of the patches of the view `whole`.
        whole: Its `PLACE`, in pixels of the picture, degrees and fractions of the side.
        part: That of the view to score; what lies outside `whole` takes its edge's scores.
        grid: Rows and columns of patches of `part`.
    """
    # Not `inv`, which asks whether it worked: a GPU would be waited for.
    back = torch.linalg.inv_ex(to_picture(whole)).inverse
    places = (back @ to_picture(part))[:, :2].to(scores.dtype)
    at = F.affine_grid(places, [len(scores), 1, *grid], align_corners=False)
    # Bilinear between the centres of patches, as resizing the map would be.
    return F.grid_sample(scores[:, None], at, padding_mode="border", align_corners=False)[:, 0]


def to_picture(place: Float[Tensor, "n 8"]) -> Float[Tensor, "n 3 3"]:
    """Matrices from (x, y, 1) in a view, -1 to 1 across it, to pixels of the picture."""
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


def _matrices(rows: list[list[Tensor]]) -> Float[Tensor, "n 3 3"]:
    return torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
