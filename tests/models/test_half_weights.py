"""Weights copied once a step: features and gradients of autocast, to the bit."""

import copy

import pytest
import torch
from tiny_tower import tiny_vit
from torch import nn

from counterpoint.models.half_weights import HalfLinear, HalfWeights
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

N, CONTEXT = 6, 16


def tiny(**parts):
    torch.manual_seed(0)
    text = ClipTextTower(32, 2, 2, CONTEXT, vocab_size=50)
    model = TwoTower(tiny_vit(2, 16), text, 16, image_projection="wide_mlp", **parts)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def batch():
    g = torch.Generator().manual_seed(1)
    return {
        "image": torch.randint(0, 256, (N, 3, 16, 16), dtype=torch.uint8, generator=g),
        "text": torch.randint(1, 50, (N, CONTEXT), generator=g),
        "text_length": torch.randint(2, CONTEXT, (N,), generator=g),
    }


def step(model, dtype=torch.bfloat16):
    model.zero_grad()
    with torch.autocast("cpu", dtype, cache_enabled=False):
        features = model(batch())
        loss = (features["image"] @ features["text"].T * 10).logsumexp(1).mean()
        loss.backward()
    return features, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_equal(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name].dtype == value.dtype and torch.equal(mine[name], value), name


@pytest.mark.parametrize("parts", [{}, {"chunks": 2}, {"text_parts": 0}])
def test_features_and_gradients_are_autocasts(parts):
    """Each linear layer; the three projections of attention are one product, see below."""
    plain, model = tiny(**parts), tiny(**parts)
    names = list(model.state_dict())
    half = HalfWeights(model, torch.bfloat16)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, HalfLinear) for module in model.modules()) == 2 * 4 + 2 * 3 + 3
    for layer in model.text.layers():
        layer.self_attn.fused = None
    for _ in range(2):  # copies follow the weights
        half.refresh()
        assert_equal(step(model), step(plain))
        for parameter in (*plain.parameters(), *model.parameters()):
            parameter.data.mul_(1.1)


def test_the_fused_projections_are_those_of_one_layer_under_autocast():
    torch.manual_seed(0)
    attention = tiny().text.layers()[0].self_attn
    one = nn.Linear(32, 96)
    parts = attention.inputs()
    one.weight.data = torch.cat([part.weight.data for part in parts])
    one.bias.data = torch.cat([part.bias.data for part in parts])
    HalfWeights(attention, torch.bfloat16).refresh()
    x = torch.randn(N, CONTEXT, 32)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        want, got = one(inputs[0]), attention.fused(inputs[1])
        towards = torch.randn_like(want)
        want.backward(towards)
        got.backward(towards)
    assert torch.equal(got, want) and torch.equal(inputs[1].grad, inputs[0].grad)
    for kind in ("weight", "bias"):
        grads = [getattr(part, kind).grad for part in parts]
        assert torch.equal(torch.cat(grads), getattr(one, kind).grad)
    assert attention.fused.applies(x) is False  # no autocast here


def test_without_gradients_or_autocast_weights_are_read_themselves():
    plain, model = tiny(), tiny()
    HalfWeights(model, torch.bfloat16)  # whose copies hold nothing yet
    want, got = plain(batch()), model(batch())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        evaluated = [each(batch())["text"] for each in (plain, model)]
    assert torch.equal(got["image"], want["image"]) and torch.equal(*evaluated)


def test_frozen_weights_get_no_gradient():
    model = tiny()
    model.image.requires_grad_(False)
    HalfWeights(model, torch.bfloat16).refresh()
    _, grads = step(model)
    assert grads and not any(name.startswith("image.") for name in grads)
    twin = copy.deepcopy(model)
    HalfWeights.remove(model)
    assert not any(isinstance(module, HalfLinear) for module in model.modules())
    assert list(twin.state_dict()) == list(model.state_dict()) == list(tiny().state_dict())
    assert_equal([step(model)[0]], [step(tiny())[0]])
