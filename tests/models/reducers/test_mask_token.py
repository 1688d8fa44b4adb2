"""Mask tokens against timm's own modules with the tokens replaced by hand."""

import pytest
import torch

from counterpoint.models.image import TimmTower
from counterpoint.models.reducers.base import ImageReducer, Reduction
from counterpoint.models.reducers.mask_token import MaskTokens
from counterpoint.models.reducers.patches import RandomPatches, Resize
from counterpoint.models.shared import SharedImageTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
KINDS = {
    "plain": {},
    "average": {"global_pool": "avg", "class_token": False},
    "dinov2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "clip": {"pre_norm": True, "norm_layer": torch.nn.LayerNorm, "final_norm": True},
}
KEYS = torch.arange(50) * 977
STEP = Reduction(seed=1, step=2)


def tower(kind="plain", size=32):
    torch.manual_seed(0)
    made = TimmTower("vit_tiny_patch16_224", size, model_args=SMALL | KINDS[kind]).double()
    MaskTokens(RandomPatches()).prepare(made)
    made.double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def pixels(size=32):
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8, generator=g)


def gradients(model, value):
    model.zero_grad()
    (value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_what_the_other_reducer_leaves_out_is_hidden_in_its_place():
    every, hidden, num = MaskTokens(RandomPatches(0.75)).keep((4, 5), KEYS, "image", STEP)
    assert num == 15
    kept = RandomPatches(0.75).keep((4, 5), KEYS, "image", STEP).kept
    assert torch.equal(every[~hidden].view(50, 5), kept)
    assert torch.equal(every, torch.arange(20).expand(50, -1))
    assert MaskTokens(ImageReducer()).keep((4, 5), KEYS, "image", STEP) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_token_stands_where_a_patch_stood(kind):
    model, image = tower(kind), pixels()
    patches = MaskTokens(RandomPatches(0.5)).keep((4, 4), KEYS[:5], "image", STEP)
    got, trunk = model(image, patches.kept, patches.hidden), model.trunk
    x = trunk.patch_embed(model.stem(image))
    x = torch.where(patches.hidden[:, :, None], model.mask_token, x)
    want = trunk.forward_head(trunk.norm(trunk.blocks(trunk.norm_pre(trunk._pos_embed(x)))))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    others = gradients(model, want)
    assert others["mask_token"].abs().sum() > 0.1
    for name, value in gradients(model, got).items():
        torch.testing.assert_close(value, others[name], rtol=1e-12, atol=1e-11, msg=name)


@pytest.mark.parametrize("size", [32, 24])
def test_elsewhere_the_token_changes_nothing_and_has_a_gradient_of_zero(size):
    model, image = tower(), pixels(size)
    plain = TimmTower("vit_tiny_patch16_224", 32, model_args=SMALL).double()
    state = model.state_dict()
    token = state.pop("mask_token")
    plain.load_state_dict(state)
    assert token.shape == (16,)
    kept = RandomPatches(0.5).keep((size // 8, size // 8), KEYS[:5], "image", STEP).kept
    for keep in (None, kept):
        assert torch.equal(model(image, keep), plain(image, keep))
        got, want = gradients(model, model(image, keep)), gradients(plain, plain(image, keep))
        assert not got.pop("mask_token").any()
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_evaluation_sees_whole_pictures_and_parts_the_same_tokens():
    text = ClipTextTower(width=16, depth=1, num_heads=2, context_length=6, vocab_size=50)
    model = TwoTower(tower().float(), text, 8)
    batch = {"image": pixels(), "key": KEYS[:5]}
    reduction = Reduction(1, 2, Resize(24, then=MaskTokens(RandomPatches(0.5))))
    whole = model(batch, ("image",), reduction)["image"]
    model.chunks = 3
    torch.testing.assert_close(model(batch, ("image",), reduction)["image"], whole)
    seen = model.encode_image(batch["image"])
    assert torch.equal(model(batch, ("image",))["image"], seen)
    assert (whole - seen).abs().max() > 1e-3


def test_towers_without_tokens_are_refused():
    reducer = Resize(16, then=MaskTokens(RandomPatches()))
    for model, message in (
        (TimmTower("resnet18", 32), "is a ResNet, which has no tokens to replace"),
        (SharedImageTower(16, 8, 16, 1, 2), "SharedImageTower has no mask token"),
    ):
        with pytest.raises(ValueError, match=message):
            reducer.prepare(model)
