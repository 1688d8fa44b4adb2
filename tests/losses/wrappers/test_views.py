"""A term on several views: which features and entries it is shown, and what is refused."""

import pytest
import torch

from counterpoint.losses.alignclip import Separation
from counterpoint.losses.base import SampleTerm
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.negclip import NegCLIP
from counterpoint.losses.wrappers.views import OverViews


class Watching(SampleTerm):
    """Remembers what it was shown."""

    name = "watching"
    needs = ("image.raw", "text", "text.negative", "teacher.large.image", "key")

    def __init__(self):
        super().__init__()
        self.seen = []

    def per_sample(self, features, batch):
        self.seen.append(({n: features[n].item() for n in self.needs[:4]}, dict(batch)))
        return features["text"]


def test_the_term_sees_the_views_and_their_entries_in_the_place_of_image_and_text():
    term = OverViews(Watching(), [("image", "text"), ("image.other", "text.long")])
    assert set(term.needs) == {
        *("image.raw", "image.other.raw", "text", "text.long"),
        *("text.negative", "teacher.large.image", "key"),
    }
    names = [name for name in term.needs if name != "key"]
    features = {name: torch.tensor([float(i)]) for i, name in enumerate(names)}
    batch = {"text": "T", "text_length": "n", "text.long": "L", "text.long_length": "m", "key": "k"}
    value = {n: v.item() for n, v in features.items()}
    (loss,) = term(features, batch).values()
    assert loss.item() == (value["text"] + value["text.long"]) / 2
    (first, one), (second, other) = term.term.seen
    assert first == {name: value[name] for name in Watching.needs[:4]} and one == batch
    assert (second["image.raw"], second["text"]) == (value["image.other.raw"], value["text.long"])
    for name in ("text.negative", "teacher.large.image"):
        assert second[name] == value[name]
    assert (other["text"], other["text_length"], other["key"]) == ("L", "m", "k")


def test_what_travels_early_and_what_evaluation_ranks_by_are_the_terms():
    term = OverViews(InfoNCE(), [("image", "text"), ("image.other", "text")])
    assert term.ahead == ("image", "image.other") and term.reads_weight
    assert term.ranking_similarity() is term.term.similarity
    assert OverViews(NegCLIP(), [("image.other", "text")]).needs == (
        *("image.other", "text"),
        "text.negative",
    )
    assert "meaning.text" in OverViews(Separation("meaning.text")).needs


@pytest.mark.parametrize("views", [[], [("text", "image")], [("image", "sidecar.text")]])
def test_pairs_that_are_none_are_refused(views):
    with pytest.raises(ValueError, match="must be pairs of an image view and a text view"):
        OverViews(InfoNCE(), views)


def test_a_missing_view_is_named():
    term = OverViews(InfoNCE(), [("image.other", "text")])
    with pytest.raises(ValueError, match=r"needs the feature 'image\.other'"):
        term({"image": torch.ones(1, 2), "text": torch.ones(1, 2)}, {})
