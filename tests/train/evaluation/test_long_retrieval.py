"""Long captions of several fields."""

import json

import pytest
from toy_evaluation import ToyImages

from counterpoint.data.text.captions import Joined
from counterpoint.train.evaluation.long_retrieval import LongRetrieval


@pytest.fixture
def images():
    data = ToyImages(3)
    fields = [
        {"caption": " a dog ", "names": {"fr": "un chien", "de": ["Hund", " "]}, "year": 2024},
        {"caption": "", "names": {"fr": "un chat"}},
        {"names": {"de": "Vogel"}, "year": None},
    ]
    for item, each in zip(data.items, fields, strict=True):
        item.fields.clear()
        item.fields.update(each)
    return data


def test_captions_are_those_of_training(images):
    names = ["caption", "names.de", "year", "names.fr"]
    task = LongRetrieval(images, names)
    texts, of_image, _ = task.pairs(task.prepare())
    assert texts == ["a dog. Hund. 2024. un chien", "un chat", "Vogel"]
    assert of_image == [[0], [1], [2]]
    policy = Joined([f"json:{name}" for name in names])
    for text, item in zip(texts, images.items, strict=True):
        assert policy({"__key__": "k", "json": json.dumps(item.fields).encode()}, 0.5) == text


def test_an_image_without_any_of_them_is_refused(images):
    with pytest.raises(ValueError, match=r"no text in caption, names\.fr"):
        LongRetrieval(images, ["caption", "names.fr"]).prepare()
    with pytest.raises(ValueError, match="must be a list"):
        LongRetrieval(images, "caption")
