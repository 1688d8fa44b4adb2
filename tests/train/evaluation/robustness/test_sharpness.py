"""Sharpness by layer, against losses of models that are changed by hand, and curvature."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from toy_evaluation import tokenizer
from vector_model import NAMES, Classes, Vectors, run, small_vit

from counterpoint.train.evaluation.robustness.sharpness import LayerSharpness, noise

DATA = Classes(24, noise=60, seed=2)
PROMPTS = {"templates": "a {c}", "scale": 5.0}


def losses(model):
    ids, lengths = tokenizer([f"a {name}" for name in NAMES], Vectors.context_length)
    cosines = model.encode_image(DATA.pixels).double() @ model.encode_text(ids, lengths).double().T
    return F.cross_entropy(5 * cosines, torch.from_numpy(DATA.labels), reduction="none")


def shaken(model, layers, draw, factor, seed):
    """The model with noise on some of its layers."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for n in layers:
            for name, weight in model.image.trunk.blocks[n].named_parameters():
                weight += factor * weight.abs() * noise(f"{n}.{name}", draw, seed, weight)
    return model


def test_sharpness_is_how_much_the_loss_rises():
    model, details = small_vit(), {}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = LayerSharpness(0.2, draws=2, seed=4, data=DATA, **PROMPTS)
    results = run(task, model, details=details)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        own = losses(model)
        assert results["log_loss.nats"] == pytest.approx(float(own.mean()), rel=1e-5)
        expected = []
        for layers in ([0, 1, 2], [0], [1], [2]):
            rows = [
                losses(shaken(model, layers, draw, sign * 0.2, 4)) - own
                for draw in (0, 1)
                for sign in (-1, 1)
            ]
            expected.append(float(torch.stack(rows).mean()))
    names = ["sharpness.nats", *(f"layer{n}_sharpness.nats" for n in range(3))]
    assert [results[name] for name in names] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert len(set(expected)) == 4 and max(np.abs(expected)) > 1e-3
    curve = details["s/t/by_layer"].record()["curve"]
    assert curve["x"] == [0, 1, 2] and curve["y"] == pytest.approx(expected[1:], rel=1e-3)


def test_of_small_noise_it_is_the_curvature():
    """The slope cancels: what is left is half of d' H d, by Hessian products in float64."""
    model, rho, draws = small_vit().double(), 0.03, 2
    weights = dict(model.image.trunk.blocks[2].named_parameters())
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        slopes = torch.autograd.grad(
            losses(model).mean(), list(weights.values()), create_graph=True
        )
        total = 0.0
        for draw in range(draws):
            moved = [
                rho * weight.detach().abs() * noise(f"2.{name}", draw, 0, weight)
                for name, weight in weights.items()
            ]
            along = sum((s * d).sum() for s, d in zip(slopes, moved, strict=True))
            products = torch.autograd.grad(along, list(weights.values()), retain_graph=True)
            total += sum(float((p * d).sum()) for p, d in zip(products, moved, strict=True)) / 2
    results = run(LayerSharpness(rho, draws=draws, data=DATA, **PROMPTS), model)
    assert results["layer2_sharpness.nats"] == pytest.approx(total / draws, rel=0.05)
    assert abs(total) > 1e-5


def test_noise_is_standard_normal_and_of_its_own_for_each_weight_and_draw():
    drawn = noise("0.a", 0, 0, torch.zeros(50_000, dtype=torch.float64))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    others = [noise("1.a", 0, 0, drawn), noise("0.a", 1, 0, drawn), noise("0.a", 0, 1, drawn)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([drawn, other]))[0, 1])) < 0.03
    assert torch.equal(drawn, noise("0.a", 0, 0, drawn))


def test_fewer_images_and_mistakes():
    assert len(LayerSharpness(max_images=10, data=DATA, **PROMPTS).prepare()) == 10
    with pytest.raises(ValueError, match="rho is 0, draws 3"):
        LayerSharpness(0, data=DATA)
    with pytest.raises(ValueError, match="needs an image tower with layers"):
        run(LayerSharpness(data=DATA, **PROMPTS), Vectors())
