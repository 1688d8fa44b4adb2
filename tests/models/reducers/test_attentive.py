"""Attentive masking against whole attention maps, and against where crops show the same thing."""

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import ResPostBlock

from counterpoint.data.images.decode import Pixels
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.models.attention import run_with_attention
from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.attentive import (
    PLACE,
    AttentivePatches,
    inverse,
    resample_scores,
)
from counterpoint.models.reducers.base import Reduction
from counterpoint.models.reducers.mask_token import MaskTokens
from counterpoint.models.reducers.patches import Resize

KEYS = torch.arange(6)


def tower(**more):
    torch.manual_seed(0)
    small = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2} | more
    made = TimmTower("vit_tiny_patch16_224", 32, model_args=small).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made


@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2, "qk_norm": True, "qkv_bias": False}])
@pytest.mark.parametrize(("size", "num_parts"), [(32, 1), (16, 1), (16, 2)])
def test_the_class_tokens_row_is_that_of_the_whole_maps(more, size, num_parts):
    model = tower(**more)
    image = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    result, got = run_with_attention(
        model, image, lambda: torch.cat([model(part) for part in image.tensor_split(num_parts)])
    )
    maps = []
    for block in model.trunk.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, inputs, __: maps.append(inputs[0]))
    torch.testing.assert_close(result, model(image))
    first, side = model.trunk.num_prefix_tokens, size // 8
    want = torch.stack(maps).mean(dim=(0, 2))[:, 0, first:].view(3, side, side)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not any(block._forward_pre_hooks for block in model.trunk.blocks)


def test_a_tower_without_class_token_or_with_other_blocks_is_refused():
    unusual = ({"class_token": False, "global_pool": "avg"}, {"block_fn": ResPostBlock})
    towers = [*(tower(**more) for more in unusual), TimmTower("resnet18", 32)]
    for reducer in (AttentivePatches(), Resize(16, then=MaskTokens(AttentivePatches()))):
        for model in towers:
            with pytest.raises(ValueError, match="class_token: true"):
                reducer.prepare(model)


def test_who_wraps_the_reducer_passes_on_what_it_needs():
    wrapped = Resize(16, then=MaskTokens(AttentivePatches(sees="image.a")))
    assert wrapped.needs == ("ema.image.a.attention",) and Resize(16).needs == ()
    place = torch.tensor([[0.0, 0.0, 8.0, 8.0, 0.0, 0.0, 0.0, 0.0]])
    batch = {"image.augmentation": place, "image.a.augmentation": place}
    attention = torch.rand(1, 2, 2)
    scores = wrapped.scores({"ema.image.a.attention": attention}, batch, {"image": (2, 2)})
    torch.testing.assert_close(scores["image"], attention)
    with pytest.raises(ValueError, match=r"where 'image.a' lies"):
        wrapped.check_views(tower(), {}, ["image"])


def plane(rows, columns):
    """A score that is linear in the picture's pixels: resampling keeps it exactly."""
    return 3.0 * rows[:, None] - 2.0 * columns[None, :]


def centres(first, length, count, mirrored=False):
    places = first + (torch.arange(count) + 0.5) / count * length
    return places.flip(0) if mirrored else places


def place(*box, **more):
    values = dict(zip(PLACE, box, strict=False)) | more
    return torch.tensor([[values.get(name, 0.0) for name in PLACE]], dtype=torch.float64)


@pytest.mark.parametrize("mirrored", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_scores_move_with_the_crops(mirrored):
    whole, part = (10.0, 20.0, 80.0, 64.0), (30.0, 40.0, 40.0, 24.0)
    scores = plane(centres(10, 80, 8), centres(20, 64, 8, mirrored[0]))
    want = plane(centres(30, 40, 4), centres(40, 24, 4, mirrored[1]))
    boxes = [place(*box, flip=m) for box, m in zip((whole, part), mirrored, strict=True)]
    torch.testing.assert_close(
        resample_scores(scores[None], *boxes, (4, 4))[0], want, rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("turned", [(0, 1), (1, 0), (1, 1)])
def test_scores_move_as_the_pixels_of_rotated_and_shifted_views_do(turned):
    assert TrainTransform.columns[: len(PLACE)] == PLACE
    g = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :120]
    sloping = Pixels(
        torch.from_numpy((0.7 * rows + 1.2 * columns).astype(np.uint8)).expand(3, -1, -1)
    )
    shares = ((0.9, 1.0), (0.2, 0.4))
    transforms = [
        TrainTransform(share, flip=0.5, rotate=20.0 * t, translate=0.1 * t)
        for share, t in zip(shares, turned, strict=True)
    ]
    for _ in range(7):
        drawn = [transform.draw(120, 120, g) for transform in transforms]
        first, second = (t.apply(sloping, 64, d)[0] for t, d in zip(transforms, drawn, strict=True))
        boxes = [torch.from_numpy(params[None, : len(PLACE)]) for params in drawn]
        got = resample_scores(first[None].float(), *boxes, (64, 64))[0]
        # Where both show the picture and not what lies beside it, they show the same.
        inside = (second < 240) & (got < 240)
        assert inside.float().mean() > 0.4
        assert (got - second)[inside].abs().quantile(0.7) < 1


def test_the_best_cells_are_kept():
    g = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 14, 14, generator=g)
    reduction = Reduction(0, 0, scores={"image": scores})
    kept = AttentivePatches(0.5, cell=2).keep((14, 14), KEYS, "image", reduction).kept
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


def test_the_inverse_of_affine_maps_is_that_of_their_matrices():
    maps = torch.randn(64, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps[:, 2] = torch.tensor([0.0, 0.0, 1.0])
    torch.testing.assert_close(inverse(maps), torch.linalg.inv(maps))
