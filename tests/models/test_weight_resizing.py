"""Positions of captions for longer ones."""

import pytest
import torch
from tiny_tower import tiny_vit
from torch.nn import functional as F

from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower
from counterpoint.models.weight_resizing import resized


def model(context_length, kept_positions=0):
    tower = ClipTextTower(
        16, 1, 2, context_length=context_length, vocab_size=50, kept_positions=kept_positions
    )
    return TwoTower(tiny_vit(), tower, embed_dim=8)


def positions_of(made):
    (name,) = (n for n in made.state_dict() if n.endswith("position_embedding.weight"))
    return name, made.state_dict()[name]


def test_long_clip_keeps_twenty_positions_and_stretches_the_others_fourfold():
    name, old = positions_of(model(77))
    new = resized({name: old}, model(248, 20))[name]
    one = old.double()
    expected = torch.zeros(248, 16, dtype=torch.float64)
    expected[:20] = one[:20]
    for i in range(56):
        for quarter in range(4):
            between = ((4 - quarter) * one[20 + i] + quarter * one[21 + i]) / 4
            expected[20 + 4 * i + quarter] = between
    for quarter in range(4):  # beyond the last
        expected[244 + quarter] = one[76] + quarter * (one[76] - one[75]) / 4
    torch.testing.assert_close(new.double(), expected, rtol=0, atol=1e-7)
    assert torch.equal(new[:20], old[:20])


def test_without_kept_positions_they_are_stretched_alike():
    name, old = positions_of(model(10))
    new = resized({name: old}, model(25))[name]
    expected = F.interpolate(old.double().T[None], size=25, mode="linear")[0].T
    torch.testing.assert_close(new.double(), expected, rtol=0, atol=1e-6)


def test_shorter_ones_are_cut_whatever_is_kept():
    name, old = positions_of(model(20))
    assert torch.equal(resized({name: old}, model(12, 5))[name], old[:12])


@pytest.mark.parametrize("kept", [-1, 12])
def test_kept_positions_that_cannot_be_are_refused(kept):
    with pytest.raises(ValueError, match=f"kept_positions={kept} of 12"):
        model(12, kept)
