"""Weights between two models."""

import pytest
import torch
from torch import nn

from counterpoint.launch.api.interpolation import check_alphas, interpolate, mixed
from counterpoint.launch.api.sources import Loaded


def loaded(name, width=3, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))
    model[1].num_batches_tracked.fill_(10 * seed)
    model[1].running_mean.fill_(seed)
    model.logit_scale = nn.Parameter(torch.full((1,), float(seed)))
    return Loaded(model, "tokenizer of " + name, None, None, name, {})


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_all_tensors_lie_on_the_line(alpha):
    start, end = loaded("start"), loaded("end", seed=1)
    before = {name: value.clone() for name, value in start.model.state_dict().items()}
    found = interpolate(start, end, alpha)
    first, second = start.model.state_dict(), end.model.state_dict()
    for name, value in found.model.state_dict().items():
        if value.is_floating_point():
            expected = (1 - alpha) * first[name].double() + alpha * second[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
            assert torch.equal(first[name], before[name])  # the ends stay as they are
    assert found.tokenizer == "tokenizer of start"
    assert found.model[1].num_batches_tracked == (10 if alpha >= 0.5 else 0)
    if alpha == 0:
        assert all(torch.equal(first[n], v) for n, v in found.model.state_dict().items())


def test_an_end_is_exact_even_beside_numbers_that_are_not_finite():
    broken = torch.tensor([torch.inf, torch.nan])
    assert torch.equal(mixed(torch.ones(2), broken, 0.0), torch.ones(2))
    assert mixed(torch.ones(2), broken, 0.5).isfinite().sum() == 0


def test_models_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"'0.weight' is \[3, 4\] in one, \[5, 4\] in the other"):
        interpolate(loaded("small"), loaded("large", 5), 0.5)
    other = loaded("other")
    del other.model.logit_scale
    with pytest.raises(ValueError, match="'logit_scale' is in one of them only"):
        interpolate(loaded("small"), other, 0.5)
    for alphas in ([], [0.5, 0.5], [1.5]):
        with pytest.raises(ValueError, match="different numbers from 0 to 1"):
            check_alphas(alphas)
