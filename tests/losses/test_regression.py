"""Regression between two features: formulas, validity over ranks, and who gets the gradient."""

import math

import pytest
import torch
from torch import nn

from counterpoint.losses.heads import MLP
from counterpoint.losses.regression import Regression, cosine, smooth_l1, squared

B, D = 8, 5


def by_hand(distance, x, y):
    """One row's distance, written out."""
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    if distance is cosine:
        dot = sum(a * b for a, b in pairs)
        return 1 - dot / math.sqrt(sum(a * a for a, _ in pairs) * sum(b * b for _, b in pairs))
    if distance is squared:
        return sum((a - b) ** 2 for a, b in pairs) / D
    gaps = [abs(a - b) for a, b in pairs]
    return sum(g * g / 2 if g < 1 else g - 0.5 for g in gaps) / D


def inputs(valid):
    g = torch.Generator().manual_seed(0)
    x, y = (2 * torch.randn(B, D, generator=g, dtype=torch.float64) for _ in range(2))
    present = torch.tensor(valid, dtype=torch.bool)
    # What stands where nothing is stored must not matter.
    y[~present] = float("nan")
    return x.requires_grad_(), y.requires_grad_(), present


def run(rank, world_size, distance, valid):
    x, y, present = inputs(valid)
    share = slice(rank * B // world_size, (rank + 1) * B // world_size)
    term = Regression("image", "teacher.image", distance, valid="teacher.present")
    batch = {"teacher.image": y[share], "teacher.present": present[share]}
    value = term({"image": x[share]}, batch)["regression"]
    value.backward()
    rows = term.per_sample({"image": x[share].detach()}, batch)
    return value.item(), x.grad / world_size, y.grad, rows


@pytest.mark.parametrize("distance", [cosine, squared, smooth_l1])
@pytest.mark.parametrize("world_size", [1, 2])
# The second rank has no target at all in the second case.
@pytest.mark.parametrize("valid", [[1, 0, 1, 1, 0, 1, 1, 0], [1, 1, 0, 1, 0, 0, 0, 0], [0] * B])
def test_equals_the_formula(gloo, distance, world_size, valid):
    x, y, _ = inputs(valid)
    kept = [i for i in range(B) if valid[i]]
    want = [by_hand(distance, x[i], y[i]) for i in kept]
    ranks = gloo(world_size, run, distance, valid)
    mean = sum(want) / max(1, len(want))
    assert math.isclose(sum(r[0] for r in ranks) / world_size, mean, abs_tol=1e-12)
    assert math.isclose(torch.cat([r[3] for r in ranks]).mean().item(), mean, abs_tol=1e-12)
    if kept:
        exact = distance(x[kept], y[kept].detach()).mean()
        (want_grad,) = torch.autograd.grad(exact, x)
        torch.testing.assert_close(sum(r[1] for r in ranks), want_grad, rtol=1e-10, atol=1e-14)
    assert all(r[2] is None for r in ranks)


def test_a_head_changes_the_width():
    torch.manual_seed(0)
    head = MLP([3, D])
    term = Regression("image.raw", "teacher.big.image.raw", squared, head)
    x, y = torch.randn(B, 3), torch.randn(B, D)
    value = term({"image.raw": x, "teacher.big.image.raw": y}, {})["regression"]
    want = nn.functional.mse_loss(x @ head[0].weight.T + head[0].bias, y)
    torch.testing.assert_close(value, want)
    assert set(term.needs) == {"image.raw", "teacher.big.image.raw"}
    with pytest.raises(ValueError, match=r"3 numbers a sample and 'teacher\.big\.image\.raw' 5"):
        Regression("image", "teacher.big.image.raw")({"image": x}, {"teacher.big.image.raw": y})
