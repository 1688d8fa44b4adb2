"""The ViT with kept patches against timm's own modules with the dropped tokens removed by hand."""

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from counterpoint.models.image import TimmTower, resampled

SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
KINDS = {
    "plain": {},
    "average": {"global_pool": "avg", "class_token": False},
    "registers": {"reg_tokens": 3, "init_values": 0.3},
    "clip": {"pre_norm": True, "norm_layer": torch.nn.LayerNorm, "final_norm": True},
    "siglip": {"global_pool": "map", "class_token": False},
    "dinov2": {"reg_tokens": 4, "no_embed_class": True, "init_values": 0.5},
    "no positions": {"pos_embed": "none", "reg_tokens": 1},
}


def tower(kind, size=32, **more):
    torch.manual_seed(0)
    made = TimmTower("vit_tiny_patch16_224", size, model_args=SMALL | KINDS[kind] | more).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def pixels(n=3, size=32):
    g = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=g)
    return image.to(memory_format=torch.channels_last)


def some(num_images, num_patches, num_kept):
    g = torch.Generator().manual_seed(2)
    order = torch.rand(num_images, num_patches, generator=g).argsort(dim=1)
    return order[:, :num_kept].sort(dim=1).values


def dense(trunk, image, keep):
    """timm's steps one by one; tokens that are not kept are removed after the positions."""
    x = trunk._pos_embed(trunk.patch_embed(image))
    first = trunk.num_prefix_tokens
    kept = [
        torch.cat([row[:first], row[first:][index]]) for row, index in zip(x, keep, strict=True)
    ]
    return trunk.forward_head(trunk.norm(trunk.blocks(trunk.norm_pre(torch.stack(kept)))))


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_of_patches_is_their_convolution(kind):
    made, image = tower(kind), pixels()
    got, trunk = made.tokens(image)
    got = gradients(made, got) | {"": got}
    want = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(made.stem(image))))
    want = gradients(made, want) | {"": want}
    assert got.keys() == want.keys() and "trunk.patch_embed.proj.weight" in want
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-11, atol=1e-11, msg=name)


def gradients(model, value):
    weights = torch.linspace(-1, 1, value.numel(), dtype=value.dtype).view_as(value)
    model.zero_grad()
    (value * weights).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_kept_patches_give_what_removing_the_others_by_hand_gives(kind):
    model, image = tower(kind), pixels()
    assert model.grid(image) == (4, 4)
    keep = some(3, 16, 5)
    got, want = model(image, keep), dense(model.trunk, model.stem(image), keep)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    other = gradients(model, want)
    for name, value in gradients(model, got).items():
        torch.testing.assert_close(value, other.pop(name), rtol=1e-12, atol=1e-12)
    assert not other


@pytest.mark.parametrize("kind", KINDS)
def test_without_reducer_it_is_timms_own_forward(kind):
    model, image = tower(kind).float(), pixels()
    assert torch.equal(model(image), model.trunk(model.stem(image)))
    every = torch.arange(16).expand(3, -1)
    torch.testing.assert_close(model.double()(image, every), model.trunk(model.stem(image)))


@pytest.mark.parametrize("kind", KINDS)
def test_another_size_is_what_timm_makes_of_it(kind):
    model, image = tower(kind), pixels(size=24)
    dynamic = tower(kind, dynamic_img_size=True)
    dynamic.load_state_dict(model.state_dict())
    want = dynamic.trunk(dynamic.stem(image))
    # timm resamples positions in float32 whatever their type.
    torch.testing.assert_close(model(image), want, rtol=1e-5, atol=1e-5)
    keep = some(3, 9, 4)
    want = dense(dynamic.trunk, dynamic.stem(image), keep)
    torch.testing.assert_close(model(image, keep), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "model_args"),
    [
        ("deit_tiny_patch16_224", 16, {"depth": 1, "embed_dim": 16, "num_heads": 2}),
        ("fastvit_t8", 32, {"layers": (1, 1, 1, 1), "embed_dims": (4, 8, 8, 16)}),
        ("mobilenetv3_small_050", 1024, {}),
    ],
)
def test_other_models_of_timm(name, width, model_args):
    model = TimmTower(name, 32, model_args=model_args).eval()
    assert model(pixels()).shape == (3, width) == (3, model.width)


def test_an_order_of_the_batch_changes_nothing_else():
    model, image, keep = tower("plain"), pixels(4), some(4, 16, 6)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(image, keep)[order], model(image[order], keep[order]))


def test_what_has_no_patches_to_drop_is_refused():
    net = TimmTower("resnet18", 32)
    with pytest.raises(ValueError, match="a ResNet, and image_reducer needs a plain timm Vision"):
        net.grid(pixels())
    with pytest.raises(ValueError, match="ResNet"):
        net(pixels(), some(3, 16, 4))
    assert net(pixels(size=64)).shape == (3, 512)
    with pytest.raises(ValueError, match=r"30 x 30 pixels do not divide .* use a size of 24"):
        tower("plain").grid(pixels(size=30))


@pytest.mark.parametrize(("kind", "size"), [("siglip", 32), ("dinov2", 24)])
def test_compiles_without_a_graph_break(kind, size):
    torch._dynamo.reset()
    model, image, keep = tower(kind, depth=1), pixels(size=size), some(3, (size // 8) ** 2, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    got = gradients(model, compiled(image, keep))
    want = gradients(model, model(image, keep))
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-10)


def test_positions_of_another_grid_stay_float32_under_autocast():
    positions = torch.linspace(-1, 1, 16 * 4).view(16, 4)
    want = resample_abs_pos_embed(positions[None], [3, 3], [4, 4], num_prefix_tokens=0)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = resampled(positions, (4, 4), (3, 3))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file of weights in timm's names, with a classifier, and the model they are of."""
    torch.manual_seed(5)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=7, **SMALL)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(model.state_dict(), path)
    return model, path


def test_pretrained_weights_are_loaded_when_asked_for_and_not_before(published):
    model, path = published
    made = TimmTower("vit_tiny_patch16_224", 48, model_args=SMALL, pretrained=str(path))
    theirs, before = model.state_dict(), {n: v.clone() for n, v in made.trunk.state_dict().items()}
    assert not torch.equal(before["blocks.1.attn.qkv.weight"], theirs["blocks.1.attn.qkv.weight"])
    assert str(path) in made.load_pretrained()
    own = made.trunk.state_dict()
    # Positions of 32 px are resampled to 48, as timm does it.
    moved = resample_abs_pos_embed(theirs["pos_embed"], [6, 6], [4, 4], num_prefix_tokens=1)
    for name, value in own.items():
        torch.testing.assert_close(value, moved if name == "pos_embed" else theirs[name])
    assert {"head.weight", "head.bias"} == theirs.keys() - own.keys()


def test_nothing_is_loaded_unless_it_is_asked_for():
    made = TimmTower("vit_tiny_patch16_224", 32, model_args=SMALL)
    before = made.trunk.pos_embed.clone()
    assert made.load_pretrained() == "" and torch.equal(before, made.trunk.pos_embed)


def test_weights_that_are_not_to_be_had_are_named(published, tmp_path, monkeypatch):
    _, path = published
    wider = TimmTower(
        "vit_tiny_patch16_224", 32, model_args=SMALL | {"embed_dim": 32}, pretrained=str(path)
    )
    with pytest.raises(ValueError, match=r"model\.safetensors.*size mismatch.*of this model"):
        wider.load_pretrained()
    absent = TimmTower(
        "vit_tiny_patch16_224", 32, model_args=SMALL, pretrained=f"{tmp_path}/no.bin"
    )
    with pytest.raises(ValueError, match=r"no\.bin: the weights of .* cannot be loaded"):
        absent.load_pretrained()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    published_by_timm = TimmTower("vit_tiny_patch16_224.augreg_in21k", 224, pretrained=True)
    with pytest.raises(ValueError, match=r"pretrained: True: .* without a network, fetch them"):
        published_by_timm.load_pretrained()
    with pytest.raises(ValueError, match="model_args has pretrained, which would be loaded again"):
        TimmTower("vit_tiny_patch16_224", 32, model_args=SMALL | {"pretrained": True})
