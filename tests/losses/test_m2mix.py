"""Geodesic mixup: points on the arc, finite at its ends, and one share for all ranks."""

import math

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.m2mix import M2Mix, mixing_share, slerp


def test_the_path_has_length_one_and_is_walked_evenly():
    torch.manual_seed(0)
    start, end = (F.normalize(torch.randn(8, 5, dtype=torch.float64), dim=1) for _ in range(2))
    angle = torch.acos((start * end).sum(1))
    for share in (0.0, 0.3, 1.0):
        point = slerp(start, end, torch.tensor(share))
        torch.testing.assert_close(point.norm(dim=1), torch.ones(8, dtype=torch.float64))
        done = torch.acos((start * point).sum(1).clamp(max=1))
        torch.testing.assert_close(done, share * angle, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_vectors_are_mixed_on_the_straight_line(dtype):
    torch.manual_seed(0)
    start = F.normalize(torch.randn(4, 6, dtype=dtype), dim=1).requires_grad_()
    other = F.normalize(start.detach() + 1e-7, dim=1)
    for end in (start.detach().clone(), other):
        end.requires_grad_()
        point = slerp(start, end, torch.tensor(0.3, dtype=dtype))
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
        torch.testing.assert_close(point, 0.7 * start + 0.3 * end, **tolerance)
        by_start, by_end = torch.autograd.grad(point.sum(), (start, end))
        torch.testing.assert_close(by_start, torch.full_like(start, 0.7), **tolerance)
        torch.testing.assert_close(by_end, torch.full_like(start, 0.3), **tolerance)


def test_opposite_vectors_give_finite_values_and_gradients():
    torch.manual_seed(0)
    image = F.normalize(torch.randn(4, 6), dim=1).requires_grad_()
    text = (-image.detach()).requires_grad_()
    value = M2Mix()({"image": image, "text": text}, {"key": torch.arange(4) << 60})["m2mix"]
    value.backward()
    assert value.isfinite() and image.grad.isfinite().all() and text.grad.isfinite().all()
    assert slerp(image, text, torch.tensor(0.5)).norm(dim=1).max() <= 1 + 1e-3


def test_shares_follow_the_arcsine_law():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**63), 2**63 - 1, (2000, 3), generator=generator)
    shares = torch.stack([mixing_share(key) for key in keys])
    for bound in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = 2 / math.pi * math.asin(math.sqrt(bound))
        assert abs((shares < bound).double().mean().item() - below) < 0.03


def test_the_same_batch_is_mixed_anew_at_another_step():
    key = torch.randint(-(2**62), 2**62, (5,), generator=torch.Generator().manual_seed(1))
    shares = [mixing_share(key, step / 1000).item() for step in range(1000)]
    assert len(set(shares)) == 1000
    assert abs(sum(shares) / 1000 - 0.5) < 0.05
    assert mixing_share(key, 0.25) == mixing_share(key.flip(0), 0.25)


def shares_on(rank, world_size, key):
    return mixing_share(key[rank::world_size], 0.5).item()


def test_ranks_draw_the_same_share_as_one_process(gloo):
    key = torch.randint(-(2**63), 2**63 - 1, (7,), generator=torch.Generator().manual_seed(2))
    assert gloo(2, shares_on, key) == [mixing_share(key, 0.5).item()] * 2
