"""One transformer for both modalities: what is shared, what is not, and what reaches what."""

import copy

import pytest
import torch
from torch.nn import functional as F

from counterpoint.models.shared import SharedImageTower, SharedTextTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower


def tiny(width=16):
    torch.manual_seed(0)
    image = SharedImageTower(image_size=16, patch_size=8, width=16, depth=2, num_heads=2)
    text = SharedTextTower(width=width, context_length=12, vocab_size=50)
    return TwoTower(image, text, embed_dim=8, logit_scale_init=10.0).double()


def batch(n=3):
    g = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=g)
    text = torch.randint(1, 50, (n, 12), generator=g)
    return {"image": image, "text": text, "text_length": torch.tensor([4, 12, 7])[:n]}


def test_everything_but_the_embeddings_is_one():
    model = tiny()
    names = {name for name, _ in model.named_parameters()}
    apart = {name for name in names if name.startswith("text.")}
    assert apart == {"text.tokens.weight", "text.positions"}
    assert "text_projection.weight" not in names
    assert model.text_projection.weight is model.image_projection.weight
    reached = {}
    for side in ("image", "text"):
        model.zero_grad()
        model(batch(), {side})[side].sum().backward()
        reached[side] = {n for n, p in model.named_parameters() if p.grad is not None}
    assert reached["image"] - reached["text"] == {
        *("image.class_token", "image.positions", "image.patches.weight", "image.patches.bias")
    }
    assert reached["text"] - reached["image"] == apart


def encoder(model):
    """The same transformer, made of torch's layers."""
    layers = []
    for block in model.image.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            16, 2, 64, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True, dtype=torch.float64
        )
        own = {
            "self_attn.in_proj_weight": block.attn.qkv.weight,
            "self_attn.in_proj_bias": block.attn.qkv.bias,
        }
        for theirs, ours in (
            ("self_attn.out_proj", block.attn.proj),
            ("linear1", block.mlp.fc1),
            ("linear2", block.mlp.fc2),
            ("norm1", block.norm1),
            ("norm2", block.norm2),
        ):
            own |= {f"{theirs}.weight": ours.weight, f"{theirs}.bias": ours.bias}
        layer.load_state_dict(own)
        layer.norm1.eps, layer.norm2.eps = block.norm1.eps, block.norm2.eps
        layers.append(layer)
    return layers


def test_features_are_those_of_torchs_transformer():
    model, data = tiny(), batch()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layers, tower = encoder(model), model.image
    pixels = tower.stem(data["image"])
    weight = tower.patches.weight.view(16, 3, 8, 8)
    patches = F.conv2d(pixels, weight, tower.patches.bias, stride=8).flatten(2).mT
    x = torch.cat([tower.class_token.expand(3, -1, -1), patches], 1) + tower.positions
    y = model.text.tokens.weight[data["text"]] + model.text.positions
    later = torch.full((12, 12), -torch.inf, dtype=torch.float64).triu(1)
    for layer in layers:
        x, y = layer(x), layer(y, src_mask=later)
    image = tower.norm(x)[:, 0] @ model.image_projection.weight.T
    text = tower.norm(y)[range(3), data["text_length"] - 1] @ model.image_projection.weight.T
    features = model(data, {"image", "text"})
    torch.testing.assert_close(features["image.raw"], image)
    torch.testing.assert_close(features["text.raw"], text)


def test_padding_changes_nothing():
    model, data = tiny(), batch()
    full = model.encode_text(data["text"], data["text_length"])
    for row, length, want in zip(data["text"], data["text_length"], full, strict=True):
        torch.testing.assert_close(model.encode_text(row[None, :length], length[None])[0], want)


def test_patches_that_are_left_out_are_not_seen():
    model, data = tiny(), batch()
    assert model.image.grid(data["image"]) == (2, 2)
    everything = torch.arange(4).repeat(3, 1)
    torch.testing.assert_close(model.image(data["image"], everything), model.image(data["image"]))
    keep = torch.tensor([[0, 3], [1, 2], [0, 1]])
    changed = data["image"].clone()
    changed[0, :, :8, 8:] = 0  # patch 1 of the first picture
    torch.testing.assert_close(model.image(changed, keep), model.image(data["image"], keep))
    assert not torch.allclose(model.image(changed), model.image(data["image"]))


def test_copies_and_weights_keep_sharing():
    model, data = tiny(), batch()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.image.parameters():
            parameter.zero_()
    assert twin.encode_text(data["text"], data["text_length"]).abs().max() == 0
    assert model.encode_text(data["text"], data["text_length"]).abs().max() > 0
    twin.load_state_dict(model.state_dict())
    want = model.encode_text(data["text"], data["text_length"])
    assert torch.equal(twin.encode_text(data["text"], data["text_length"]), want)


def test_what_does_not_fit_gets_a_sentence():
    with pytest.raises(ValueError, match=r"of width 24, and model\.image is a SharedImageTower"):
        tiny(width=24)
    with pytest.raises(ValueError, match="divide by patch_size 7"):
        SharedImageTower(image_size=16, patch_size=7)
    text = SharedTextTower(width=16, vocab_size=50)
    with pytest.raises(ValueError, match=r"model\.image is a ClipTextTower"):
        TwoTower(ClipTextTower(16, 1, 2, 12, 50), text, embed_dim=8)
    model = tiny()
    with pytest.raises(ValueError, match="takes 16 x 16 only"):
        model.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
