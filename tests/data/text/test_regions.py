"""Regions as texts: of one sample the same region, another one each epoch, and no bad box."""

import json

import pytest
import torch
from tiny import write_shards

from counterpoint.data.errors import SampleError
from counterpoint.data.images.transforms import EvalTransform, TrainTransform
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import Text, View
from counterpoint.data.shards.index import index_shards
from counterpoint.data.text.captions import FirstSentence
from counterpoint.data.text.regions import RegionBox, RegionPhrase

SQUASH = EvalTransform(resize="squash")


def record(*regions, name="regions"):
    return {"__key__": "a", "json": json.dumps({name: list(regions)}).encode()}


def region(number):
    return {"box": [0, 0.1, 0.2 + 0.1 * number, 1], "text": f"{number} birds"}


def test_phrase_and_box_of_a_region():
    one = {"box": [0.25, 0, 0.5, 1], "text": "a bird"}
    assert RegionPhrase()(record(one), 0.9) == "a bird"
    assert RegionBox()(record(one), 0.9) == "125 000 250 500"
    assert RegionBox(steps=99)(record(one), 0.9) == "25 00 50 99"
    boxes = RegionBox(field="json:regions")(
        record({"box": [1 / 3, 2 / 3, 1, 0.999], "text": "x"}), 0
    )
    assert boxes == "167 333 500 500"


def test_a_draw_chooses_evenly_and_alike():
    sample = record(*map(region, range(4)))
    draws = [(i + 0.5) / 40 for i in range(40)]
    phrases = [RegionPhrase()(sample, draw) for draw in draws]
    assert phrases == [f"{i // 10} birds" for i in range(40)]
    rights = [RegionBox()(sample, draw).split()[2] for draw in draws]
    assert rights == [f"{100 + 50 * (i // 10)}" for i in range(40)]


@pytest.mark.parametrize("sample", [{"__key__": "a"}, record(), record(name="other")])
def test_a_sample_may_lack_regions(sample):
    with pytest.raises(SampleError, match=r"no_caption: 'a' has no regions in json:regions"):
        RegionPhrase()(sample, 0.0)


@pytest.mark.parametrize(
    "box",
    [
        [10, 20, 30, 40],  # pixels
        [0.5, 0.1, 0.4, 0.2],
        [0.1, 0.2, 0.3],
        [0, 0, 1, float("nan")],
        [-0.1, 0, 1, 1],
        [0, 0, True, 1],
        "0 0 1 1",
        None,
    ],
)
def test_a_box_that_is_none_is_a_bad_sample(box):
    with pytest.raises(SampleError, match=r"bad_text: .*as fractions of the image"):
        RegionBox()(record({"box": box, "text": "a bird"}), 0.0)


@pytest.mark.parametrize(
    "bad", ["a bird", {"box": [0, 0, 1, 1]}, {"box": [0, 0, 1, 1], "text": " "}]
)
def test_a_region_without_phrase_is_a_bad_sample(bad):
    with pytest.raises(SampleError, match="bad_text"):
        RegionPhrase()(record(bad), 0.0)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="a JSON value such as json:regions"):
        RegionBox(field="regions")
    with pytest.raises(ValueError, match="steps=0: give 1 or more"):
        RegionBox(steps=0)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Pairs with regions, some without any, and pairs of which none has one."""
    folder = tmp_path_factory.mktemp("regions")

    def regions(number):
        return [region(i) for i in range(number % 3)]

    for name, extra in (("some", regions), ("none", None)):
        paths = write_shards(folder / name, regions=extra)
        index_shards([str(path) for path in paths], folder / f"{name}.parquet")
    return folder


def data(manifest, **choices):
    texts = {"phrase": Text(RegionPhrase()), "box": Text(RegionBox(), context_length=14)}
    arguments = {"texts": texts, "train_transform": SQUASH, "num_workers": 0, "lanes": 2}
    made = PairsDataModule(str(manifest), **(arguments | choices))
    made.connect(Steps([(12, 17)]), seed=3, image_size=16, context_length=8)
    return made


def test_texts_of_a_sample_are_of_one_region_in_every_epoch(manifests):
    dataset = data(manifests / "some.parquet").train_dataset()
    seen, kept = {}, 0
    for step in range(12):
        places = dataset.plan.locate(dataset.positions(step))
        batch, texts = dataset.loader.load(list(zip(*(x.tolist() for x in places), strict=True)))
        for key, phrase, box in zip(
            batch["key"].tolist(), texts["text.phrase"], texts["text.box"], strict=True
        ):
            assert (phrase == "") == (box == "")
            if phrase:
                assert int(box.split()[2]) == 100 + 50 * int(phrase[0])
                seen.setdefault(key, set()).add(phrase)
                kept += 1
    # A third has one region, a third two, of which four epochs do not always take the same.
    assert kept == 4 * 34
    assert sum(len(phrases) == 2 for phrases in seen.values()) > 10
    batch = dataset[2]
    assert torch.equal(batch["text.box.present"], batch["text.phrase.present"])
    assert batch["text.box.present"].any() and not batch["text.box.present"].all()
    assert batch["text.box"].shape == (17, 14)
    # A sample without regions is no bad one, and a batch depends on the step alone.
    assert not batch["status"].any()
    again = data(manifests / "some.parquet").train_dataset()[2]
    assert all(torch.equal(again[name], rows) for name, rows in batch.items())


def test_two_names_draw_two_regions(manifests):
    other = {"phrase": RegionPhrase(), "other": RegionPhrase(draws_as="other")}
    dataset = data(manifests / "some.parquet", texts=other).train_dataset()
    _, texts = dataset.loader.load([(e, s, o) for e in range(9) for s in range(3) for o in (2, 5)])
    pairs = set(zip(texts["text.phrase"], texts["text.other"], strict=True))
    assert {("0 birds", "1 birds"), ("0 birds", "0 birds")} <= pairs


def test_a_start_is_refused_where_boxes_would_be_wrong(manifests, tmp_path):
    some = manifests / "some.parquet"
    data(some).check()
    with pytest.raises(ValueError, match=r"'text.phrase' is of regions in json:regions, and none"):
        data(manifests / "none.parquet").check()
    crop = {"train_transform": TrainTransform()}
    with pytest.raises(
        ValueError, match="boxes of 'image', which is made by TrainTransform: boxes"
    ):
        data(some, **crop).check()
    with pytest.raises(ValueError, match="boxes of 'image', which is made by EvalTransform"):
        data(some, train_transform=EvalTransform()).check()
    of_view = {"box": RegionBox(view="image.whole")}
    data(some, **crop, texts=of_view, views={"whole": View(SQUASH)}).check()
    with pytest.raises(ValueError, match=r"boxes of 'image.whole', which is no view"):
        data(some, texts=of_view).check()
    with pytest.raises(ValueError, match="through FirstSentence, which would draw another region"):
        data(some, texts={"box": RegionBox(), "phrase": FirstSentence(RegionPhrase())}).check()
    pixels = write_shards(tmp_path, regions=lambda number: [{"box": [1, 2, 3, 4], "text": "x"}])
    index_shards([str(path) for path in pixels], tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"'text.phrase': .* edges as fractions of the image"):
        data(tmp_path / "train.parquet").check()
