"""BYOL's target, which only follows; its values are tested with those of all terms."""

import pytest
import torch

from counterpoint.losses.components.heads import MLP
from counterpoint.losses.self_supervision.byol import BYOL

PAIRS = [("image.a.raw", "ema.image.b.raw"), ("image.b.raw", "ema.image.a.raw")]


def test_the_target_starts_as_the_projector_and_is_not_trained():
    term = BYOL(MLP([4, 3, 2]), MLP([2, 3, 2]), PAIRS)
    ((online, target),) = term.averages()
    assert online is term.projector and target is term.target
    for own, other in zip(target.parameters(), online.parameters(), strict=True):
        assert torch.equal(own, other) and own is not other
    features = {name: torch.randn(6, 4) for name in term.needs}
    before = {name: value.clone() for name, value in term.state_dict().items()}
    term(features, {})["byol"].backward()
    assert all(p.grad is not None for p in online.parameters())
    assert all(p.grad is None and not p.requires_grad for p in target.parameters())
    changed = {n for n, v in term.state_dict().items() if not torch.equal(v, before[n])}
    # Running statistics follow the batches that are learned from; the target's come by averaging.
    assert changed == {f"{h}.1.{n}" for h in ("projector", "predictor") for n in STATISTICS}
    before = {name: value.clone() for name, value in term.state_dict().items()}
    with torch.no_grad():  # for the log
        by_sample = term.per_sample(features, {})
    assert all(torch.equal(v, before[n]) for n, v in term.state_dict().items())
    torch.testing.assert_close(by_sample.mean(), term(features, {})["byol"])


STATISTICS = ("running_mean", "running_var")


def test_needs_and_refusals():
    term = BYOL(MLP([2, 2]), MLP([2, 2]), PAIRS)
    assert sorted(term.needs) == sorted({name for pair in PAIRS for name in pair})
    with pytest.raises(ValueError, match="an averaged one, such as"):
        BYOL(MLP([2, 2]), MLP([2, 2]), [("image", "image.a")])
    with pytest.raises(ValueError, match="needs pairs"):
        BYOL(MLP([2, 2]), MLP([2, 2]), [])
