"""Consistency of similarities: digits that d x d matrices keep."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.cyclip import CrossModalConsistency, InModalConsistency

TERMS = {
    "cross_modal": (CrossModalConsistency, lambda u, v: u @ v.T - v @ u.T),
    "in_modal": (InModalConsistency, lambda u, v: u @ u.T - v @ v.T),
}


def pairs(distance):
    """Embeddings in a narrow cone, as at the start of training, and pairs close to each other."""
    g = torch.Generator().manual_seed(0)
    draw = [torch.randn(200, 16, generator=g, dtype=torch.float64) for _ in range(2)]
    u = F.normalize(3.0 + draw[0], dim=1)
    return u, F.normalize(u + distance * draw[1], dim=1)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("distance", [1.0, 0.01])
def test_float32_keeps_small_differences(name, distance):
    kind, differences = TERMS[name]
    # Both sides start from the same single-precision numbers.
    singles = [t.float() for t in pairs(distance)]
    exact = [t.double().requires_grad_() for t in singles]
    wanted = differences(*exact).square().sum() / 200
    gradients = torch.autograd.grad(wanted, exact)
    leaves = [t.requires_grad_() for t in singles]
    with torch.autocast("cpu", torch.bfloat16):
        (value,) = kind()({"image": leaves[0], "text": leaves[1]}, {}).values()
    assert value.item() == pytest.approx(wanted.item(), rel=1e-4)
    for got, want in zip(torch.autograd.grad(value, leaves), gradients, strict=True):
        atol = 1e-4 * float(want.abs().max())
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", TERMS)
def test_equal_embeddings_are_consistent(name):
    u, _ = pairs(1.0)
    (value,) = TERMS[name][0]()({"image": u, "text": u}, {}).values()
    assert value.item() == 0.0
