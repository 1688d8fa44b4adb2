"""SimCLR between views: what it is at its ends."""

import math

import pytest
import torch
from torch import nn

from counterpoint.losses.self_supervision.simclr import SimCLR


def views(first, second):
    return {"image.strong_1.raw": first, "image.strong_2.raw": second}


def test_length_of_the_features_makes_no_difference():
    torch.manual_seed(0)
    first, second = torch.randn(5, 4), torch.randn(5, 4)
    once, again = (SimCLR()(views(k * first, second / k), {})["simclr"] for k in (1.0, 30.0))
    torch.testing.assert_close(once, again)


def test_a_single_sample_has_no_negatives():
    features = views(torch.randn(1, 4, requires_grad=True), torch.randn(1, 4))
    value = SimCLR()(features, {})["simclr"]
    value.backward()
    assert value.item() == 0.0
    assert features["image.strong_1.raw"].grad.abs().max() < 1e-6  # rounding


def test_collapsed_views_cost_log_of_the_number_of_candidates():
    ones = torch.ones(4, 3)
    assert math.isclose(SimCLR()(views(ones, ones), {})["simclr"].item(), math.log(7), rel_tol=1e-6)


def test_the_head_learns_and_the_temperature_does_not():
    term = SimCLR(nn.Linear(4, 3))
    term(views(torch.randn(6, 4), torch.randn(6, 4)), {})["simclr"].backward()
    assert {name for name, p in term.named_parameters() if p.grad.abs().sum() > 0} == {
        "head.weight",
        "head.bias",
    }


def test_a_view_is_not_compared_with_itself():
    with pytest.raises(ValueError, match="name two views"):
        SimCLR(views=("image.raw", "image.raw"))
