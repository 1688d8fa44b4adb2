"""BYOL against its formula in float64, on any number of ranks; its target only follows."""

import pytest
import torch
from torch import nn

from counterpoint.losses.byol import BYOL
from counterpoint.losses.heads import MLP

B, D = 8, 6
PAIRS = [
    ("image.a.raw", "ema.image.b.raw"),
    ("image.b.raw", "ema.image.a.raw"),
    ("image.a.raw", "ema.image.c.raw"),
]


def term():
    torch.manual_seed(0)
    made = BYOL(MLP([D, 7, 5]), MLP([5, 4, 5]), PAIRS).double()
    # As after some steps: the target is no longer the projector.
    with torch.no_grad():
        for parameter in made.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def features():
    g = torch.Generator().manual_seed(1)
    names = sorted({name for pair in PAIRS for name in pair})
    return {n: torch.randn(B, D, generator=g, dtype=torch.float64) for n in names}


def copied(head, sizes):
    """A head of torch's own modules with the same weights."""
    a, b, c = sizes
    layers = [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(), nn.Linear(b, c)]
    made = nn.Sequential(*layers).double()
    made.load_state_dict(head.state_dict(), strict=False)
    return made


def formula(made, data):
    projector, target = copied(made.projector, (D, 7, 5)), copied(made.target, (D, 7, 5))
    predictor = copied(made.predictor, (5, 4, 5))
    rows = []
    for online, averaged in PAIRS:
        p, z = predictor(projector(data[online])), target(data[averaged]).detach()
        cosines = (p * z).sum(1) / (p.square().sum(1) * z.square().sum(1)).sqrt()
        rows.append(2 - 2 * cosines)
    return torch.stack(rows).mean(0), projector, predictor


def run(rank, world_size):
    made, data = term(), {n: v[rank::world_size].requires_grad_() for n, v in features().items()}
    by_sample = made.per_sample(data, {}).detach()
    value = made(data, {})["byol"]
    value.backward()
    grads = {n: p.grad for n, p in made.named_parameters()}
    return value.item(), by_sample, grads, {n: v.grad for n, v in data.items()}


@pytest.mark.parametrize("world_size", [1, 2])
def test_equals_the_formula(gloo, world_size):
    made, data = term(), {n: v.requires_grad_() for n, v in features().items()}
    want, projector, predictor = formula(made, data)
    want.mean().backward()
    ranks = gloo(world_size, run)
    assert abs(sum(r[0] for r in ranks) / world_size - want.mean().item()) < 1e-12
    for rank, (_, by_sample, grads, inputs) in enumerate(ranks):
        torch.testing.assert_close(by_sample, want.detach()[rank::world_size])
        assert all(grads[name] is None for name in grads if name.startswith("target"))
        for name, value in data.items():
            if name.startswith("ema."):
                assert inputs[name] is None
                continue
            got = inputs[name] / world_size
            torch.testing.assert_close(got, value.grad[rank::world_size], rtol=1e-9, atol=1e-13)
    for prefix, head in (("projector", projector), ("predictor", predictor)):
        for name, parameter in head.named_parameters():
            got = sum(r[2][f"{prefix}.{name}"] for r in ranks) / world_size
            torch.testing.assert_close(got, parameter.grad, rtol=1e-9, atol=1e-13)


def test_the_target_starts_as_the_projector_and_is_not_trained():
    made = BYOL(MLP([4, 3, 2]), MLP([2, 3, 2]), PAIRS)
    ((online, target),) = made.averages()
    assert online is made.projector and target is made.target
    assert all(not p.requires_grad for p in target.parameters())
    for own, other in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(own, other) and own is not other
    assert any(name.startswith("target.") for name in made.state_dict())


def test_needs_and_refusals():
    assert sorted(term().needs) == sorted(features())
    with pytest.raises(ValueError, match="an averaged one, such as"):
        BYOL(MLP([2, 2]), MLP([2, 2]), [("image", "image.a")])
    with pytest.raises(ValueError, match="needs pairs"):
        BYOL(MLP([2, 2]), MLP([2, 2]), [])
