"""Attentive masking (A-CLIP): the patches that a slowly moving image tower looks at stay.

In: a crop that the averaged tower sees whole, and the augmentation parameters of that crop and of
the views cut from the same picture. Out: a score for every patch of every view, and the indices of
the patches with the highest. Yang et al., "Attentive Mask CLIP" (2023), section 3.

Whoever owns the averaged tower calls `view_scores` without gradient and puts the result into
`Reduction.scores` before the trained towers run.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, Int64, UInt8
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.nn import functional as F

from ..image import TimmTower
from .reduction import ImageReducer, Reduction


class AttentivePatches(ImageReducer):
    """Keeps the cells of patches with the highest scores, as many for every picture.

    Args:
        drop: Share of the cells left out (the number kept is rounded up: 25 of 49).
        cell: Side of a cell in patches.

    Raises:
        ValueError: A value is out of range.
    """

    def __init__(self, drop: float = 0.5, cell: int = 2):
        if not 0 <= drop < 1 or cell < 1:
            raise ValueError(
                f"AttentivePatches has drop={drop} and cell={cell}; give a share below 1 and 1 or "
                "more patches"
            )
        self.drop = drop
        self.cell = cell

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


def view_scores(
    tower: TimmTower, batch: Mapping[str, Tensor], seen: str, views: Iterable[str]
) -> dict[str, Float[Tensor, "n rows columns"]]:
    """Scores the patches of views by the attention that an averaged tower pays to another crop.

    Args:
        tower: The averaged tower, in evaluation mode.
        batch: Pictures and, by `NAME.augmentation`, what made them: the crop's top, left, rows and
            columns in pixels of the whole picture, and whether it was mirrored, come first.
        seen: Batch entry of the crop that the tower sees; it should contain the views.
        views: Batch entries of the pictures to score.
    """
    attention = class_attention(tower, batch[seen])
    whole = batch[f"{seen}.augmentation"][:, :5].float()
    return {
        view: moved(
            attention, whole, batch[f"{view}.augmentation"][:, :5].float(), tower.grid(batch[view])
        )
        for view in views
    }


@torch.no_grad()
def class_attention(
    tower: TimmTower, image: UInt8[Tensor, "n 3 h w"]
) -> Float[Tensor, "n rows columns"]:
    """Attention of the class token to each patch, averaged over all layers and heads.

    Only the class token's row is computed (one more projection to keys a layer, about 8% of it);
    the blocks themselves keep their fused attention.

    Raises:
        ValueError: The tower is no plain ViT with a class token, or has unusual blocks.
    """
    x, trunk = tower.tokens(image)
    if not trunk.has_class_token or not all(map(usual, trunk.blocks)):
        raise ValueError(
            "attentive masking reads the attention of the class token in timm's usual blocks, and "
            "the image tower has none; set class_token: true in its model_args, or use "
            "RandomPatches"
        )
    total = x.new_zeros(())
    for block in trunk.blocks:
        assert isinstance(block, Block) and isinstance(block.attn, Attention)
        total = total + class_row(block.attn, block.norm1(x))
        x = block(x)
    patches = (total / len(trunk.blocks))[:, trunk.num_prefix_tokens :]
    return patches.unflatten(1, tower.grid(image)).float()


def usual(block: torch.nn.Module) -> bool:
    """Tells whether a block is timm's own with its own attention, on its first norm."""
    return type(block) is Block and type(block.attn) is Attention


def class_row(attention: Attention, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t"]:
    """The first token's row of timm's attention map, averaged over heads."""
    layer = attention.qkv
    weights = layer.weight.unflatten(0, (3, -1))
    biases = (None,) * 3 if layer.bias is None else layer.bias.unflatten(0, (3, -1))
    query = F.linear(x[:, :1], weights[0], biases[0]).unflatten(2, (attention.num_heads, -1))
    keys = F.linear(x, weights[1], biases[1]).unflatten(2, (attention.num_heads, -1))
    query, keys = attention.q_norm(query), attention.k_norm(keys)
    logits = torch.einsum("nqhd,nthd->nht", query * attention.scale, keys)
    return logits.softmax(dim=-1).mean(dim=1)


def moved(
    scores: Float[Tensor, "n h w"],
    whole: Float[Tensor, "n 5"],
    part: Float[Tensor, "n 5"],
    grid: tuple[int, int],
) -> Float[Tensor, "n rows columns"]:
    """Reads scores of one crop at the patches of another crop of the same picture.

    Args:
        scores: Of the patches of the crop `whole`.
        whole: Its top, left, rows, columns (pixels of the picture) and whether it is mirrored.
        part: The same of the crop to score; what lies outside `whole` takes its edge's scores.
        grid: Rows and columns of patches of `part`.
    """
    places = []
    for axis, count in enumerate(grid):
        centres = (torch.arange(count, device=scores.device) + 0.5) / count
        centres = centres.expand(len(scores), -1)
        if axis == 1:
            centres = torch.where(part[:, 4:] > 0, 1 - centres, centres)
        pixels = part[:, axis, None] + centres * part[:, axis + 2, None]
        place = (pixels - whole[:, axis, None]) / whole[:, axis + 2, None]
        if axis == 1:
            place = torch.where(whole[:, 4:] > 0, 1 - place, place)
        places.append(2 * place - 1)
    down, right = places
    at = torch.stack(
        [right[:, None, :].expand(-1, grid[0], -1), down[:, :, None].expand(-1, -1, grid[1])], -1
    )
    # Bilinear between the centres of patches, as resizing the map would be.
    return F.grid_sample(
        scores[:, None], at.to(scores.dtype), padding_mode="border", align_corners=False
    )[:, 0]
