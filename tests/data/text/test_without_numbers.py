"""Numbers and what is no word are taken out of captions."""

import pytest

from counterpoint.data.errors import SampleError
from counterpoint.data.text.captions import WeightedChoice
from counterpoint.data.text.without_numbers import WithoutNumbers


def without(text, **options):
    return WithoutNumbers(**options)({"__key__": "a", "txt": text.encode()}, 0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red fox", "a red fox"),
        ("Nike Air Max 90", "Nike Air Max"),
        ("2014-06-12 10:30:05 garden", "garden"),
        ("3.5% of $20,000 raised", "of raised"),
        ("in the 1980s, a 3D model.", "in the a model."),
        ("abstract-001", "abstract"),
        ("x-24-filled", "x-filled"),
        ("(abstract-001) icon", "(abstract) icon"),
        ("covid-19 vaccine", "covid vaccine"),
        ("IMG_20140512.jpg flower_pot_2.png", "flower_pot"),
        ("DSC00012 the beach", "the beach"),
        ("see https://a.org/x?y=1 or www.b.com/7 here", "see or here"),
        ("sale Sale SALE shoes sale", "sale shoes sale"),
        ("– | ★ fox ...", "fox"),
        ("2019年新款 連衣裙 3件", "年新款 連衣裙 件"),
        ("модель 1990 года", "модель года"),
        ("größe 42", "größe"),
        ("it's well-known", "it's well-known"),
        ("٣ kittens", "kittens"),
    ],
)
def test_what_goes_and_what_stays(text, expected):
    assert without(text) == expected


@pytest.mark.parametrize("text", ["42", "IMG_2031.JPG", "10.5 x4 -- 3", "http://a.org/b"])
def test_a_caption_of_numbers_is_none(text):
    with pytest.raises(SampleError, match="no text in its caption but numbers") as caught:
        without(text)
    assert caught.value.cause == "no_caption"


def test_the_words_that_go_and_the_policy_are_settings():
    assert without("vector icon 3 png", redundant=["vector", "icon"]) == "png"
    assert without("vector icon 3 png", redundant=[]) == "vector icon png"
    policy = WithoutNumbers(WeightedChoice({"json:a": 1}))
    assert policy.fields == ("json:a",)
    assert policy({"__key__": "a", "json": b'{"a": "cat 9"}'}, 0.5) == "cat"
