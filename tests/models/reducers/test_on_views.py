"""Reducers of some views: what is hidden there, what the model says of it, what is refused."""

import pytest
import torch
from tiny_tower import tiny_vit

from counterpoint.models.reducers.base import ImageView, Reduction
from counterpoint.models.reducers.mask_token import MaskTokens
from counterpoint.models.reducers.on_views import OnViews
from counterpoint.models.reducers.patches import RandomPatches, Resize
from counterpoint.models.text.clip import ClipTextTower
from counterpoint.models.two_tower import TwoTower

HALF = MaskTokens(RandomPatches(0.5))
NEEDS = ("image", "image.whole.tokens", "image.whole.hidden")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    text = ClipTextTower(width=16, depth=1, num_heads=2, context_length=8, vocab_size=20)
    made = TwoTower(tiny_vit(), text, embed_dim=8)
    OnViews(HALF, ["image.whole"]).prepare(made.image)
    torch.nn.init.normal_(made.image.mask_token)
    return made


def batch():
    torch.manual_seed(1)
    image = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    return {"image": image, "image.whole": image, "key": torch.arange(5) * 977}


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_other_view_stays_whole_and_the_model_says_what_is_hidden(model, chunks):
    step = Reduction(1, 2, OnViews(HALF, ["image.whole"]))
    given = batch()
    found = model(given, NEEDS, step, chunks=chunks)
    want = HALF.keep((2, 2), given["key"], "image.whole", step)
    assert want.hidden.sum(1).tolist() == [want.num_hidden] * 5 == [2] * 5
    places = [[i - 4 for i in range(4) if row[i]] for row in want.hidden]
    assert found["image.whole.hidden"].tolist() == places
    torch.testing.assert_close(found["image"], model(given, ("image",))["image"])
    states, _ = model.image.states(given["image"], want.kept, want.hidden)
    torch.testing.assert_close(found["image.whole.tokens"], states)
    assert (found["image.whole"] - found["image"]).abs().max() > 1e-3


@pytest.mark.parametrize("reducer", [None, OnViews(HALF, ["image"]), RandomPatches(0.5)])
def test_a_term_that_reads_what_nothing_hides_is_told(model, reducer):
    with pytest.raises(ValueError, match=r"which patches of 'image.whole' are hidden, and none"):
        model(batch(), NEEDS, Reduction(1, 2, reducer))


def test_refusals():
    with pytest.raises(ValueError, match=r"give a list such as \[image.whole\]"):
        OnViews(HALF, [])
    for inner in (Resize(8), MaskTokens(Resize(8, RandomPatches()))):
        with pytest.raises(ValueError, match="a Resize, which knows no views"):
            OnViews(inner, ["image.whole"])
    views = {"image": ImageView(16), "image.whole": ImageView(16)}
    reducer = OnViews(HALF, ["image.whole"])
    reducer.check_views(tiny_vit(), views, ["image", "image.whole"])
    with pytest.raises(ValueError, match=r"\['image.whole'\], which the student does not encode"):
        reducer.check_views(tiny_vit(), views, ["image"])
