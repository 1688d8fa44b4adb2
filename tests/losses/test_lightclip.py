"""Softened targets: torch's label smoothing, the ramp, and what neighbours are."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.lightclip import ByNeighbours, Softened
from counterpoint.losses.weight_schedules import Ramp


def features(b=6):
    torch.manual_seed(0)
    image, text = (F.normalize(torch.randn(b, 5), dim=1) for _ in range(2))
    return {"image": image, "text": text, "logit_scale": torch.tensor([8.0])}


def value(term, given):
    return term(given, {})[term.name]


def test_even_softening_is_label_smoothing_of_torch():
    given = features()
    logits = 8.0 * given["image"] @ given["text"].T
    own = torch.arange(6)
    want = sum(F.cross_entropy(x, own, label_smoothing=0.3) for x in (logits, logits.T)) / 2
    torch.testing.assert_close(value(Softened(0.3), given), want)


def test_softening_grows_with_the_run_from_plain_infonce():
    given, ramp = features(), Ramp(0.0, 0.2, start=0.25, stop=0.75)
    at = {p: value(Softened(ramp), given | {"progress": torch.tensor(p)}) for p in (0.1, 0.5, 1.0)}
    torch.testing.assert_close(at[0.1], value(InfoNCE(), given))
    torch.testing.assert_close(at[0.5], value(Softened(0.1), given))
    torch.testing.assert_close(at[1.0], value(Softened(0.2), given))
    # Without a run, as in a script of one's own, softening is complete.
    torch.testing.assert_close(value(Softened(ramp), given), at[1.0])


def test_a_twin_is_half_right_where_targets_follow_neighbours():
    given = features(2)
    given["image"] = given["image"][:1].repeat(2, 1)
    given["text"] = given["text"][:1].repeat(2, 1)
    # Both columns are alike: any target that adds up to one costs ln 2, and no more.
    found = value(Softened(1.0, ByNeighbours(50.0)), given)
    torch.testing.assert_close(found, torch.tensor(2.0).log())
    given["text"] = torch.eye(2, 5)
    logits = 8.0 * given["image"] @ given["text"].T
    half = torch.full((2, 2), 0.5)
    rows = F.cross_entropy(logits, half)
    columns = F.cross_entropy(logits.T, torch.eye(2))
    found = value(Softened(1.0, ByNeighbours(50.0)), given)
    torch.testing.assert_close(found, (rows + columns) / 2)


def test_an_amount_beyond_one_is_refused():
    with pytest.raises(ValueError, match=r"amount 1\.5"):
        value(Softened(1.5), features())
