"""Attentive masking against whole attention maps, and crops against what a plane's scores are."""

import pytest
import torch
from timm.models.vision_transformer import ResPostBlock

from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.attentive import (
    AttentivePatches,
    class_attention,
    moved,
    view_scores,
)
from counterpoint.models.reducers.reduction import Reduction

KEYS = torch.arange(6)


def tower(**more):
    torch.manual_seed(0)
    small = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2} | more
    made = TimmTower("vit_tiny_patch16_224", 32, model_args=small).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2, "qk_norm": True, "qkv_bias": False}])
def test_the_class_tokens_row_is_that_of_the_whole_maps(more):
    model = tower(**more)
    image = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    maps = []
    for block in model.trunk.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
    model(image)
    first = model.trunk.num_prefix_tokens
    want = torch.stack(maps).mean(dim=(0, 2))[:, 0, first:].view(3, 4, 4)
    torch.testing.assert_close(class_attention(model, image).double(), want, rtol=1e-6, atol=1e-6)


def test_a_tower_without_class_token_or_with_other_blocks_is_refused():
    unusual = ({"class_token": False, "global_pool": "avg"}, {"block_fn": ResPostBlock})
    for model in (tower(**more) for more in unusual):
        with pytest.raises(ValueError, match="class_token: true"):
            class_attention(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def plane(rows, columns):
    """A score that is linear in the picture's pixels: resampling keeps it exactly."""
    return 3.0 * rows[:, None] - 2.0 * columns[None, :]


def centres(first, length, count, mirrored=False):
    places = first + (torch.arange(count) + 0.5) / count * length
    return places.flip(0) if mirrored else places


@pytest.mark.parametrize("mirrored", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_scores_move_with_the_crops(mirrored):
    whole, part = (10.0, 20.0, 80.0, 64.0), (30.0, 40.0, 40.0, 24.0)
    scores = plane(centres(10, 80, 8), centres(20, 64, 8, mirrored[0]))
    want = plane(centres(30, 40, 4), centres(40, 24, 4, mirrored[1]))
    boxes = [torch.tensor([[*box, m]]) for box, m in zip((whole, part), mirrored, strict=True)]
    torch.testing.assert_close(moved(scores[None], *boxes, (4, 4))[0], want, rtol=1e-4, atol=1e-3)


def test_views_are_scored_by_what_the_average_sees():
    model = tower()
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 32, 32, 0, 9], [4, 0, 28, 32, 1, 9]], dtype=torch.float64)
    batch = {"image.ema": image, "image": image, "image.strong": image[:, :, :16, :16]}
    batch |= {f"{name}.augmentation": boxes for name in list(batch)}
    scores = view_scores(model, batch, "image.ema", ["image", "image.strong"])
    torch.testing.assert_close(scores["image"], class_attention(model, image))
    assert scores["image.strong"].shape == (2, 2, 2)


def test_the_best_cells_are_kept():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 14, 14, generator=g)
    reduction = Reduction(0, 0, scores={"image": scores})
    kept = AttentivePatches(0.5, cell=2).keep((14, 14), KEYS, "image", reduction)
    assert kept.shape == (6, 100) and (kept.diff(dim=1) > 0).all()
    for row, found in zip(scores, kept.tolist(), strict=True):
        cells = {
            (r, c): row[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].sum().item()
            for r in range(7)
            for c in range(7)
        }
        best = sorted(cells, key=cells.__getitem__, reverse=True)[:25]
        want = {(2 * r + i) * 14 + 2 * c + j for r, c in best for i in (0, 1) for j in (0, 1)}
        assert set(found) == want


def test_what_cannot_be_kept_is_said():
    reduction = Reduction(0, 0, scores={"image": torch.zeros(6, 3, 3)})
    with pytest.raises(ValueError, match=r"3 x 3 patches does not divide into cells of 2 x 2"):
        AttentivePatches().keep((3, 3), KEYS, "image", reduction)
    with pytest.raises(ValueError, match=r"needs scores of 'image.strong'"):
        AttentivePatches(cell=1).keep((3, 3), KEYS, "image.strong", reduction)
    with pytest.raises(ValueError, match=r"drop=1.0"):
        AttentivePatches(1.0)
