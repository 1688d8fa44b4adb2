"""Contributions of a ViT's parts add up to the embedding, and are what is missing without them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from counterpoint.models.head_contributions import HeadContributions
from counterpoint.models.image import TimmTower
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

SIZES = {"patch_size": 8, "embed_dim": 12, "depth": 3, "num_heads": 3}
KINDS = {
    "class_token": {},
    "clip": {"pre_norm": True, "qkv_bias": True},
    "registers": {"reg_tokens": 2, "init_values": 0.3, "qk_norm": True},
    "gated": {"scale_attn_norm": True, "proj_bias": False},
    "mean": {"global_pool": "avg", "class_token": False},
    "mean_after_norm": {"global_pool": "avg", "fc_norm": False},
    "no_norm": {"final_norm": False, "pool_include_prefix": True, "global_pool": "avg"},
}


def made(projection="linear", name="vit_tiny_patch16_224", **options):
    torch.manual_seed(0)
    image = TimmTower(name, image_size=16, model_args={**SIZES, **options})
    text = ClipTextTower(8, 1, 2, context_length=8, vocab_size=128)
    model = TwoTower(image, text, embed_dim=7, image_projection=projection).double().eval()
    for parameter in model.parameters():  # norms and biases too, which start as 1 and 0
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def pixels(num=5, size=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, 3, size, size), dtype=torch.uint8, generator=generator)


def decomposed(model, image):
    return HeadContributions(model.image, model.image_projection)(image)


@pytest.mark.parametrize("projection", ["linear", "affine"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_the_embedding_before_normalisation(kind, projection):
    model = made(projection, **KINDS[kind])
    found = decomposed(model, pixels())
    assert found.heads.shape == (5, 3, 3, 7) and found.mlps.shape == (5, 3, 7)
    with torch.no_grad():
        expected = model.encode_image(pixels(), form=".raw")
    torch.testing.assert_close(found.total(), expected, rtol=1e-10, atol=1e-10)
    assert found.heads.std(0).min() > 0


def test_a_heads_part_is_what_the_last_layer_loses_without_it():
    """The norm is taken with the statistics of the whole sum, by hand and in one token."""
    model = made()
    found, trunk = decomposed(model, pixels()), model.image.trunk
    block, seen = trunk.blocks[-1], {}
    hooks = [
        block.attn.proj.register_forward_pre_hook(lambda _, i: seen.update(mixed=i[0][:, 0])),
        trunk.norm.register_forward_pre_hook(lambda _, i: seen.update(final=i[0][:, 0])),
    ]
    with torch.no_grad():
        model.encode_image(pixels())
        kept = torch.zeros(12, dtype=torch.float64)
        kept[4:8] = 1  # the second of three heads of four channels
        head = F.linear(seen["mixed"] * kept, block.attn.proj.weight) + block.attn.proj.bias / 3
        final = seen["final"]
        deviation = (final.var(1, correction=0, keepdim=True) + trunk.norm.eps).sqrt()
        part = trunk.norm.weight * (head - head.mean(1, keepdim=True)) / deviation
        expected = model.image_projection(part)
        mlp = decomposed(model, pixels()).mlps[:, -1]
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found.heads[:, -1, 1], expected, rtol=1e-10, atol=1e-12)
    assert (mlp - expected).abs().max() > 1e-3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_other_sizes_of_images_and_single_precision():
    model = made().float()
    image = pixels(3, 24)
    with torch.no_grad():
        expected = model.encode_image(image, form=".raw")
    torch.testing.assert_close(decomposed(model, image).total(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"global_pool": "map"}, "pools by attention"),
        ({"global_pool": "max"}, "or by the maximum"),
        ({"norm_layer": nn.RMSNorm}, "ends with a RMSNorm"),
        ({"projection": "mlp"}, "projection has several layers"),
        ({"name": "vit_relpos_small_patch16_224"}, "is a VisionTransformerRelPos"),
    ],
)
def test_other_towers_are_refused(options, reason):
    model = made(**options)
    with pytest.raises(ValueError, match=f"cannot be told apart here.*{reason}.*can in a vit_"):
        HeadContributions(model.image, model.image_projection)
