"""Separation within a modality: duplicates in meaning, stop-gradients, sources of the meaning."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.alignclip import Removed, Separation
from counterpoint.losses.components.caption_embeddings import SharedWords


def features(b=5):
    torch.manual_seed(0)
    made = {n: F.normalize(torch.randn(b, 4), dim=1).requires_grad_() for n in ("image", "text")}
    return made | {"logit_scale": torch.tensor([5.0])}


def value(term, given, batch):
    return term(given, batch)["separation"]


def test_captions_of_one_meaning_still_count_when_rescaled_and_not_when_removed():
    given, same = features(), {"s.embedding": torch.ones(5, 3)}
    own = 5.0 * (given["image"] * given["text"]).sum(1)
    # Four negatives with a logit of 0 beside each positive, on both sides.
    want = 2 * torch.log1p(4 * torch.exp(-own)).mean()
    torch.testing.assert_close(value(Separation("s.embedding"), given, same), want)
    removed = value(Separation("s.embedding", Removed()), given, same)
    removed.backward()
    assert removed.item() == 0.0
    assert given["image"].grad.abs().max() == 0.0


def test_samples_without_a_stored_row_are_unlike_everything():
    given = features()
    far = value(Separation("s.embedding"), given, {"s.embedding": torch.eye(5)})
    none = value(Separation("s.embedding"), given, {"s.embedding": torch.zeros(5, 3)})
    torch.testing.assert_close(far, none)


def test_the_meaning_gets_no_gradient():
    given = features() | {"teacher.a.text": torch.randn(5, 3, requires_grad=True)}
    value(Separation("teacher.a.text"), given, {}).backward()
    assert given["teacher.a.text"].grad is None
    assert all(given[name].grad.abs().sum() > 0 for name in ("image", "text"))


def test_shared_words_are_the_cosine_of_bags_of_words():
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(3, 13, (40,), generator=generator)
    text = torch.randint(1, 300, (40, 12), generator=generator)
    bags = torch.zeros(40, 300)
    for bag, row, n in zip(bags, text, length, strict=True):
        bag.index_add_(0, row[1 : n - 1], torch.ones(int(n) - 2))
    made = SharedWords(1 << 14)({}, {"text": text, "text_length": length})
    exact, found = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (bags, made))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    # In fewer numbers some tokens meet.
    small = F.normalize(SharedWords()({}, {"text": text, "text_length": length}), dim=1)
    assert (small @ small.T - exact).abs().mean() < 0.05


def test_what_is_missing_gets_a_sentence():
    with pytest.raises(ValueError, match=r"needs the feature 's.embedding': store it in a sidecar"):
        value(Separation("s.embedding"), features(), {})
    with pytest.raises(ValueError, match="name image, text or both"):
        Separation("s.embedding", sides=["audio"])
