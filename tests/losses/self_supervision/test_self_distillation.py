"""The teacher's side of self-distillation; values are tested with those of all terms."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.self_supervision.head import PrototypeHead
from counterpoint.losses.self_supervision.local_to_global import LocalToGlobal
from counterpoint.losses.self_supervision.masked_prediction import MaskedPrediction

WHOLE = "ema.image.pooled"


def head():
    torch.manual_seed(0)
    return PrototypeHead(5, hidden=7, bottleneck=4, prototypes=6)


def features(rows=9):
    torch.manual_seed(1)
    return {name: torch.randn(rows, 5) for name in ("image.local_1.pooled", WHOLE)}


def test_the_teachers_head_starts_as_the_students_and_is_not_trained():
    term = LocalToGlobal(head())
    assert term.averages() == [(term.head, term.target)]
    for own, other in zip(term.target.parameters(), term.head.parameters(), strict=True):
        assert torch.equal(own, other) and own is not other
    term(features(), {})["local_to_global"].backward()
    assert all(p.grad is not None for p in term.head.parameters())
    assert all(p.grad is None and not p.requires_grad for p in term.target.parameters())


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 2, 1, 0, 1, 5, 1, 1, 1])])
def test_the_centre_follows_the_teachers_mean_logits_of_the_samples(weights):
    term, given = LocalToGlobal(head(), centre_momentum=0.9), features()
    batch = {} if weights is None else {"weight": weights}
    prototypes = F.normalize(term.target.weight, dim=1)
    logits = F.normalize(term.target.layers(given[WHOLE]), dim=1) @ prototypes.T
    mean = logits.mean(0) if weights is None else weights @ logits / weights.sum()
    with torch.no_grad():  # for the log
        term.per_sample(given, batch)
    assert not term.centre.any()
    term(given, batch)
    torch.testing.assert_close(term.centre, 0.1 * mean.detach())
    term(given, batch)
    torch.testing.assert_close(term.centre, 0.19 * mean.detach())


def ranks_centre(rank, world_size):
    term, given = LocalToGlobal(head()), features()
    mine = [slice(0, 7), slice(7, 9), slice(9, 9)][rank] if world_size > 1 else slice(0, 9)
    term({name: value[mine] for name, value in given.items()}, {})
    return term.centre


def test_the_centre_is_that_of_all_ranks(gloo):
    want = ranks_centre(0, 1)
    assert want.abs().min() > 1e-4
    for found in gloo(3, ranks_centre):
        torch.testing.assert_close(found, want)


def test_the_backward_pass_uses_the_centre_of_its_own_forward_pass():
    found = []
    for tile_bytes in (1, 1 << 20):
        term, given = LocalToGlobal(head(), tile_bytes=tile_bytes), features()
        term.centre += torch.linspace(-1, 1, 6)
        given["image.local_1.pooled"].requires_grad_()
        term(given, {})["local_to_global"].backward()
        found.append(given["image.local_1.pooled"].grad)
    torch.testing.assert_close(*found)


def test_hidden_patches_are_counted_from_the_last_state():
    term = MaskedPrediction(head(), "image.whole")
    torch.manual_seed(2)
    given = {
        "image.whole.tokens": torch.randn(2, 4, 5, requires_grad=True),
        "image.whole.hidden": torch.tensor([[-3, -1], [-2, -1]]),
        "ema.image.whole.tokens": torch.randn(2, 4, 5),
    }
    term(given, {})["masked_prediction"].backward()
    reached = given["image.whole.tokens"].grad.abs().sum(2) > 0
    assert reached.tolist() == [[False, True, False, True], [False, False, True, True]]


def test_needs_and_refusals():
    assert LocalToGlobal(head()).needs == ("image.local_1.pooled", WHOLE)
    assert MaskedPrediction(head(), "image.a").needs == (
        *("image.a.tokens", "image.a.hidden"),
        "ema.image.a.tokens",
    )
    with pytest.raises(ValueError, match="name a list of online features"):
        LocalToGlobal(head(), ["ema.image.pooled"])
    with pytest.raises(ValueError, match="name a feature of the run's average"):
        LocalToGlobal(head(), whole="image.pooled")
    with pytest.raises(ValueError, match="temperatures are above 0"):
        LocalToGlobal(head(), temperature=0.0)
