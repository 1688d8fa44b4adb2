"""Regression: what is missing does not matter, and what cannot fit is told."""

import pytest
import torch

from counterpoint.losses.distillation.feature_regression import (
    FeatureRegression,
    cosine,
    smooth_l1,
    squared,
)


@pytest.mark.parametrize("distance", [cosine, squared, smooth_l1])
def test_what_stands_for_a_missing_target_does_not_matter(distance):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=g).requires_grad_(), torch.randn(5, 3, generator=g)
    present = torch.tensor([True, False, True, True, False])
    want = distance(x[present], y[present]).mean()
    want_grad = torch.autograd.grad(want, x)[0]
    y[~present] = float("nan")
    term = FeatureRegression("image", "teacher.image", distance, valid="teacher.present")
    stored = {"teacher.image": y.requires_grad_(), "teacher.present": present}
    value = term({"image": x}, stored)["regression"]
    torch.testing.assert_close(value, want)
    value.backward()
    torch.testing.assert_close(x.grad, want_grad)
    assert y.grad is None
    assert term.per_sample({"image": x}, stored) is None
    assert set(term.needs) == {"image", "teacher.image", "teacher.present"}


def test_the_mask_of_a_text_is_not_asked_of_the_towers():
    term = FeatureRegression("text.de", "teacher.large.text", valid="text.de.present")
    assert term.needs == ("text.de", "teacher.large.text")
    features = {"text.de": torch.randn(4, 3), "teacher.large.text": torch.randn(4, 3)}
    kept = torch.tensor([True, False, False, True])
    want = cosine(*(features[name][kept] for name in term.needs)).mean()
    torch.testing.assert_close(term(features, {"text.de.present": kept})["regression"], want)


def test_losses_by_sample_are_the_parts_of_the_loss():
    features = {"image": torch.randn(4, 3), "ema.image": torch.randn(4, 3)}
    term = FeatureRegression("image", "ema.image")
    torch.testing.assert_close(
        term.per_sample(features, {}).mean(), term(features, {})["regression"]
    )


def test_widths_must_agree():
    features = {"image": torch.randn(4, 3), "teacher.big.image": torch.randn(4, 5)}
    with pytest.raises(ValueError, match=r"3 numbers a sample and 'teacher\.big\.image' 5"):
        FeatureRegression("image", "teacher.big.image")(features, {})


def test_a_target_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"needs the feature 'large\.image': name a view"):
        FeatureRegression("image", "large.image")({"image": torch.randn(4, 3)}, {})
