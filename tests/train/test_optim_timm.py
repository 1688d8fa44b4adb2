"""Optimisers: a step is the library's own (or the formula's), and each one learns."""

import pytest
import torch
from timm.optim._optim_factory import create_optimizer_v2
from torch import nn

from counterpoint.train.optim import AdamW
from counterpoint.train.optim_timm import Adafactor, Lamb, Lion, Muon, StableAdamW

RECIPES = {
    "adamw": (AdamW(), 0.01),
    "stable": (StableAdamW(), 0.01),
    "lamb": (Lamb(), 0.02),
    "lion": (Lion(weight_decay=0.01), 0.003),
    "adafactor": (Adafactor(), 0.01),
    "muon": (Muon(adamw=["*.0.weight"]), 0.02),
}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Embedding(9, 16), nn.Linear(16, 32), nn.GELU())
        self.text = nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Linear(32, 4))
        self.logit_scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.text(self.image(x)) * self.logit_scale


def loss_of(model):
    g = torch.Generator().manual_seed(1)
    target = torch.randn(9, 4, generator=g)
    return (model(torch.arange(9)) - target).square().mean()


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]


def train(model, optimizer, rate, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        set_rate(optimizer, rate)
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", RECIPES)
def test_every_optimiser_learns(name):
    recipe, rate = RECIPES[name]
    model = Model()
    first = loss_of(model).item()
    assert train(model, recipe.build(model), rate, 150) < 0.1 * first


@pytest.mark.parametrize("name", RECIPES)
def test_a_resumed_optimiser_goes_on_as_if_nothing_had_happened(name, tmp_path):
    recipe, rate = RECIPES[name]
    whole = Model()
    train(whole, recipe.build(whole), rate, 6)
    first, second = Model(), Model()
    optimizer = recipe.build(first)
    train(first, optimizer, rate, 3)
    torch.save([first.state_dict(), optimizer.state_dict()], tmp_path / "state")
    weights, state = torch.load(tmp_path / "state", weights_only=True)
    second.load_state_dict(weights)
    optimizer = recipe.build(second)
    optimizer.load_state_dict(state)
    train(second, optimizer, rate, 3)
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_without_gradients_stay_as_they_are(name):
    """So that a step can be skipped."""
    recipe, rate = RECIPES[name]
    model = Model()
    optimizer = recipe.build(model, fused=False)
    train(model, optimizer, rate, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(a, p) for a, p in zip(before, model.parameters(), strict=True))


def one_step(recipe, rate, steps=3):
    """(before, gradient, after) of the last of a few steps, in float64, by name."""
    model = Model().double()
    optimizer = recipe.build(model)
    trace = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        set_rate(optimizer, rate)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
        optimizer.step()
        trace.append((before, gradients))
    return trace, {n: p.detach() for n, p in model.named_parameters()}


def decay_of(name, tensor, decay):
    return decay if tensor.ndim >= 2 else 0.0


def test_stable_adamw_is_the_formula():
    """v debiased; the update is divided by max(1, RMS(g / (sqrt(v) + eps)))."""
    b1, b2, eps, decay, rate = 0.9, 0.98, 1e-6, 0.3, 0.05
    trace, after = one_step(StableAdamW((b1, b2), eps, decay), rate, steps=4)
    for name, got in after.items():
        first = second = torch.zeros_like(got)
        for t, (before, gradients) in enumerate(trace, 1):
            g = gradients[name]
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
            denominator = (second / (1 - b2**t)).sqrt() + eps
            rms = (g / denominator).square().mean().sqrt()
            update = first / (1 - b1**t) / denominator / max(1.0, rms.item())
            start = before[name]
        want = start * (1 - rate * decay_of(name, got, decay)) - rate * update
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, msg=name)


def test_lion_is_the_formula():
    b1, b2, decay, rate = 0.9, 0.99, 0.5, 0.01
    trace, after = one_step(Lion((b1, b2), decay), rate)
    for name, got in after.items():
        momentum = torch.zeros_like(got)
        for before, gradients in trace:
            g, start = gradients[name], before[name]
            sign = (b1 * momentum + (1 - b1) * g).sign()
            momentum = b2 * momentum + (1 - b2) * g
        want = start * (1 - rate * decay_of(name, got, decay)) - rate * sign
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12, msg=name)


def test_lamb_is_the_formula_and_does_not_clip():
    """Trust ratio |w| / |update| for what decays; no clipping at norm 1 in front of it."""
    b1, b2, eps, decay, rate = 0.9, 0.98, 1e-6, 0.2, 0.05
    trace, after = one_step(Lamb((b1, b2), eps, decay), rate)
    assert sum(g.square().sum() for g in trace[0][1].values()) > 1
    for name, got in after.items():
        first = second = torch.zeros_like(got)
        for t, (before, gradients) in enumerate(trace, 1):
            g, start = gradients[name], before[name]
            first, second = b1 * first + (1 - b1) * g, b2 * second + (1 - b2) * g * g
            update = first / (1 - b1**t) / ((second / (1 - b2**t)).sqrt() + eps)
            update = update + decay_of(name, got, decay) * start
            if got.ndim >= 2:
                update = update * start.norm() / update.norm()
        torch.testing.assert_close(got, start - rate * update, rtol=1e-8, atol=1e-12, msg=name)


def test_adafactor_is_big_visions_as_in_timm():
    rate = 0.05
    _, got = one_step(Adafactor(momentum_dtype="float32", weight_decay=0.1), rate)
    model = Model().double()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    theirs = create_optimizer_v2(
        groups, "adafactorbv", lr=rate, beta2_cap=0.95, momentum=0.9, momentum_dtype="float32"
    )
    for _ in range(3):
        theirs.zero_grad()
        loss_of(model).backward()
        theirs.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(got[name], parameter), name


def test_muon_orthogonalises_the_blocks_matrices_only():
    rate = 0.02
    recipe = Muon(adamw=["image.0.*"], weight_decay=0.0, momentum=0.0)
    trace, after = one_step(recipe, rate, steps=1)
    before, gradients = trace[0]
    model = Model()
    names = {id(p): n for n, p in model.named_parameters()}
    groups = recipe.build(model).param_groups
    muon = {names[id(p)] for g in groups if not g["use_fallback"] for p in g["params"]}
    assert muon == {"image.1.weight", "text.0.weight", "text.2.weight"}
    for name in muon:
        step = (before[name] - after[name]) / rate
        values = torch.linalg.svdvals(step)
        rank = int(torch.linalg.matrix_rank(gradients[name]))
        # Newton-Schulz makes singular values about 1; then the RMS is that of an AdamW step, 0.2.
        assert values[:rank].max() / values[:rank].min() < 2.5, name
        u, _, v = torch.linalg.svd(gradients[name], full_matrices=False)
        polar = u[:, :rank] @ v[:rank]
        cosine = (polar * step).sum() / polar.norm() / step.norm()
        assert cosine > 0.97, name
        assert 0.7 < values[:rank].mean() / (0.2 * max(step.shape) ** 0.5) < 1.3, name
    # The first step of (N)AdamW is the sign of the gradient.
    for name in set(after) - muon:
        moved = (before[name] - after[name]) / rate
        assert torch.equal(moved.sign(), gradients[name].sign()), name
