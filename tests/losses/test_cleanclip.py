"""In-modal terms: what a missing augmentation does, and who gets a gradient."""

import pytest
import torch
from torch.nn import functional as F

from counterpoint.losses.cleanclip import InModal


def features(seed=0):
    torch.manual_seed(seed)
    names = ("image", "image.strong_1", "text", "text.augmented")
    made = {name: F.normalize(torch.randn(5, 4), dim=1).requires_grad_() for name in names}
    return made | {"logit_scale": torch.tensor([5.0], requires_grad=True)}


def test_what_an_absent_text_holds_makes_no_difference():
    present = torch.tensor([True, False, True, True, False])
    values = []
    for filler in (0.0, 100.0):
        given = features()
        given["text.augmented"] = given["text.augmented"].detach().clone()
        given["text.augmented"][~present] = filler
        given["text.augmented"].requires_grad_()
        value = InModal()(given, {"text.augmented.present": present})["inmodal"]
        value.backward()
        values.append(value.item())
        assert given["text.augmented"].grad[~present].abs().max() == 0
        assert given["text.augmented"].grad[present].abs().min() > 0
    assert values[0] == values[1]


def test_without_any_augmented_text_pictures_alone_count():
    given = features()
    absent = {"text.augmented.present": torch.zeros(5, dtype=torch.bool)}
    value = InModal()(given, absent)["inmodal"]
    value.backward()
    alone = InModal(pairs=[("image", "image.strong_1")])(given, {})["inmodal"]
    torch.testing.assert_close(value, alone / 2)
    assert all(t.grad.isfinite().all() for t in given.values())


def test_it_needs_pairs():
    with pytest.raises(ValueError, match="needs pairs"):
        InModal(pairs=[])
