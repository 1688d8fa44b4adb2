"""The crop around other crops contains them and augments nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recipes import loader

from counterpoint.data.images.decode import Pixels
from counterpoint.data.images.enclosing_crop import EnclosingCrop
from counterpoint.data.images.pixels import resize
from counterpoint.data.images.transforms import EvalTransform, TrainTransform
from counterpoint.data.recipe import View
from counterpoint.data.shards.index import index_shards

ONLINE = TrainTransform((0.2, 0.6), (0.5, 2.0), flip=0.5, rotate=10, hue=0.2, erase=0.5)


def drawn(height, width, seed, zoom=1.0):
    g = np.random.default_rng(seed)
    others = [ONLINE.draw(height, width, g) for _ in range(2)]
    crop = EnclosingCrop(("image", "image.other"), zoom)
    return others, crop.draw(height, width, g, others)


def edges(params):
    top, left, rows, columns = params[:4]
    return np.array([top, left, -(top + rows), -(left + columns)])


@settings(max_examples=40)
@given(st.integers(2, 300), st.integers(2, 300), st.integers(0, 10**6), st.floats(0, 1))
def test_it_holds_the_others_and_lies_in_the_image(height, width, seed, zoom):
    others, params = drawn(height, width, seed, zoom)
    smallest = np.minimum(*map(edges, others))
    assert (edges(params) <= smallest).all() and (edges(params) == edges(params).round()).all()
    assert (edges(params) >= [0, 0, -height, -width]).all()
    if zoom == 0:
        assert (edges(params) == smallest).all()


def test_every_place_up_to_the_edge_is_alike_likely():
    crop = EnclosingCrop(("image",))
    inner = np.array([4.0, 2.0, 3.0, 5.0])
    g = np.random.default_rng(0)
    found = np.array([crop.draw(10, 9, g, [inner])[:4] for _ in range(6000)])
    for values, count in ((found[:, 0], 5), (found[:, 1], 3), (found[:, 0] + found[:, 2], 4)):
        places, often = np.unique(values, return_counts=True)
        assert len(places) == count and abs(often / 6000 - 1 / count).max() < 0.03


def test_nothing_but_the_crop_is_changed():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    for seed in range(5):
        _, params = drawn(40, 50, seed)
        top, left, rows, columns = params[:4].astype(int)
        got = EnclosingCrop(("image",)).apply(Pixels(image), 16, params)
        want = resize(image[:, top : top + rows, left : left + columns], 16, 16)
        assert torch.equal(got, want)


@pytest.fixture
def manifest(make_tar, make_image, tmp_path):
    members = [
        item
        for n in range(6)
        for item in ((f"{n}.png", make_image(n)), (f"{n}.txt", f"image {n}".encode()))
    ]
    return index_shards([make_tar(tmp_path / "0.tar", members)], tmp_path / "m.parquet")


def test_samples_have_it_and_their_other_views_stay_as_they_were(manifest):
    views = {"image.other": View(ONLINE, 16)}
    whole = {"image.whole": View(EnclosingCrop(("image", "image.other")), 8)}
    places = [(epoch, 0, n) for epoch in range(4) for n in range(6)]
    batch, _ = loader(manifest, ONLINE, views=views | whole).load(places)
    before, _ = loader(manifest, ONLINE, views=views).load(places)
    assert all(torch.equal(batch[name], before[name]) for name in before)
    assert batch["image.whole"].shape[-1] == 8
    names = ("image.whole", "image", "image.other")
    whole, *others = (batch[f"{name}.augmentation"].numpy() for name in names)
    for row, *inner in zip(whole, *others, strict=True):
        assert all((edges(row) <= edges(other)).all() for other in inner)
    assert len({tuple(row) for row in whole}) > 20
    # A batch is a function of its places: the order they are loaded in changes nothing.
    again, _ = loader(
        manifest,
        ONLINE,
        views=views | {"image.whole": View(EnclosingCrop(("image", "image.other")), 8)},
    ).load(places[::-1])
    assert torch.equal(again["image.whole"].flip(0), batch["image.whole"])


def test_mistakes_are_sentences(manifest):
    with pytest.raises(ValueError, match="needs views to lie around"):
        EnclosingCrop(())
    with pytest.raises(ValueError, match=r"zoom=1\.5"):
        EnclosingCrop(("image",), 1.5)
    for views, message in (
        ({"image.w": View(EnclosingCrop(("image.z",)), 8)}, r"around 'image.z', which is no crop"),
        (
            {
                "image.z": View(EvalTransform(), 8),
                "image.w": View(EnclosingCrop(("image.z",)), 8),
            },
            "no crop of the same image",
        ),
        ({"image.w": View(EnclosingCrop(("image",)), 8, member="n")}, "no crop of the same"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(manifest, ONLINE, views=views)
