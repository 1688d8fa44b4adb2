"""Hard negatives that are missing: from single samples, from all."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.negclip import NegCLIP, TripletCLIP

NAMES = ("image", "text", "image.negative", "text.negative")


def inputs(present):
    g = torch.Generator().manual_seed(1)
    features = {name: F.normalize(torch.randn(5, 7, generator=g), dim=-1) for name in NAMES}
    features = {name: feature.requires_grad_() for name, feature in features.items()}
    entries = {f"{name}.present": present for name in NAMES[2:]}
    return features | {"logit_scale": torch.tensor([100.0])}, entries


@pytest.mark.parametrize("term", [NegCLIP, TripletCLIP])
def test_without_any_negatives_what_is_left_is_infonce(term):
    features, batch = inputs(torch.zeros(5, dtype=torch.bool))
    value = term()(features, batch)[term.name]
    torch.testing.assert_close(value, InfoNCE()(features, batch)["infonce"])
    value.backward()
    assert features["image"].grad.abs().sum() > 0
    for name in NAMES[2:]:
        grad = features[name].grad
        assert grad is None or not grad.any(), name


@pytest.mark.parametrize("term", [NegCLIP, TripletCLIP])
def test_all_have_one_if_the_batch_does_not_say_who_has(term):
    features, batch = inputs(torch.ones(5, dtype=torch.bool))
    assert torch.equal(term()(features, {})[term.name], term()(features, batch)[term.name])


@pytest.mark.parametrize("term", [NegCLIP, TripletCLIP])
def test_what_stands_in_for_a_missing_negative_does_not_matter(term):
    present = torch.tensor([True, False, True, True, False])
    features, batch = inputs(present)
    value = term()(features, batch)[term.name]
    for name in NAMES[2:]:
        features[name] = torch.where(present[:, None], features[name], features["image"])
    torch.testing.assert_close(term()(features, batch)[term.name], value)


def test_negatives_are_a_list():
    with pytest.raises(ValueError, match=r"must be a list such as \[text.negative\]"):
        NegCLIP("text.negative")
