"""Which text becomes the caption."""

import json
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.errors import SampleError
from counterpoint.data.text.captions import (
    AnyOf,
    AnyText,
    CaptionPolicy,
    FirstFound,
    FirstSentence,
    Joined,
    NotTooShort,
    WeightedChoice,
    policy_of,
)

SAMPLE = {
    "__key__": "k",
    "txt": b"original",
    "alt": b"  \n",
    "json": json.dumps(
        {"caption": "from json", "rewrites": ["one", " ", "two", None, "three"]}
    ).encode(),
}


def test_the_first_field_with_text_is_taken():
    assert policy_of(("alt", "json:rewrites", "txt"))(SAMPLE, 0.9) == "one"
    assert policy_of(["json:caption"])(SAMPLE, 0) == "from json"
    policy = FirstFound(["txt"])
    assert policy_of(policy) is policy and policy.fields == ("txt",)


def test_a_field_may_be_within_an_object():
    names = {"de": "Katze", "fr": ["chat", "minou"], "a.b": "whole"}
    sample = {"__key__": "k", "json": json.dumps({"names": names, "x.y": "dotted"}).encode()}
    assert FirstFound(["json:names.de"])(sample, 0) == "Katze"
    assert FirstFound(["json:names.it", "json:names.fr"])(sample, 0) == "chat"
    assert FirstFound(["json:names.a.b"])(sample, 0) == "whole"
    assert FirstFound(["json:x.y"])(sample, 0) == "dotted"
    for field in ("json:names", "json:names.", "json:names.de.more", "json:.de"):
        with pytest.raises(SampleError, match="no_caption"):
            FirstFound([field])(sample, 0)


def test_choices_meet_their_weights_over_an_even_grid_of_draws():
    policy = WeightedChoice(
        {"txt": 1, "json:rewrites": 3, "alt": 5, "json:none": 2, "json:caption": 0}
    )
    draws = [(i + 0.5) / 1200 for i in range(1200)]
    # Only two fields have text: a quarter to the original, the rest spread over three rewrites.
    assert Counter(policy(SAMPLE, draw) for draw in draws) == {
        "original": 300,
        "one": 300,
        "two": 300,
        "three": 300,
    }
    assert policy(SAMPLE, 1 - 2**-53) == "three"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("A dog runs. It is fast.", "A dog runs."),
        ("Rated 3.5 stars! Wow", "Rated 3.5 stars!"),
        ('He said "stop." Then', 'He said "stop."'),
        ("no end", "no end"),
        ("  What?!  Yes.", "What?!"),
        ("一只狗。它跑。", "一只狗。"),
        (". odd", "."),
    ],
)
def test_first_sentences(text, first):
    assert FirstSentence()({"__key__": "k", "txt": text.encode()}, 0) == first


# Slow on long runs of marks, which is why another one is used.
PLAIN_END = re.compile(r"[.!?。！？]+[\"'”’)\]]*(?=\s|$)|(?<=[。！？])")


@settings(max_examples=500)
@given(st.text(alphabet=".!。'”) a\n", min_size=1, max_size=12))
def test_sentences_end_as_with_the_plain_rule(text):
    text = f"a{text}".strip()
    end = PLAIN_END.search(text)
    first = FirstSentence()({"__key__": "k", "txt": text.encode()}, 0)
    assert first == (text[: end.end()] if end else text)


class Given(CaptionPolicy):
    """One text of any length."""

    fields = ("txt",)

    def __init__(self, text: str):
        self.text = text

    def __call__(self, sample, draw):
        return self.text


def test_dots_are_read_once():
    """With the square of their number, these would take days."""
    text = "." * (1 << 22) + "a"
    assert FirstSentence(Given(text))({}, 0) == text


def test_a_sample_without_text_is_an_error_of_its_own():
    for policy in (
        FirstFound(["alt"]),
        WeightedChoice({"alt": 1}),
        FirstSentence(FirstFound(["x"])),
    ):
        with pytest.raises(SampleError, match="no_caption: 'k' has no text in"):
            policy(SAMPLE, 0.5)


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="must be a list"):
        FirstFound("txt")
    for weights in ({}, {"txt": 0.0}, {"txt": 1.0, "alt": -1.0}):
        with pytest.raises(ValueError, match="a weight above 0"):
            WeightedChoice(weights)


def test_any_text_is_each_text_equally_often():
    policy = AnyText(["txt", "alt", "json:rewrites", "json:none"])
    drawn = Counter(policy(SAMPLE, (i + 0.5) / 400) for i in range(400))
    assert drawn == {"original": 100, "one": 100, "two": 100, "three": 100}
    assert policy.fields == ("txt", "alt", "json:rewrites", "json:none")
    with pytest.raises(SampleError, match="no_caption"):
        AnyText(["alt"])(SAMPLE, 0.5)


def test_policies_are_drawn_apart_from_what_they_draw():
    policy = AnyOf(
        [FirstFound(["txt"]), AnyText(["json:rewrites"]), Joined(["txt", "json:caption"])]
    )
    drawn = Counter(policy(SAMPLE, (i + 0.5) / 900) for i in range(900))
    rewrites = {"one": 100, "two": 100, "three": 100}
    assert drawn == {"original": 300, "original. from json": 300, **rewrites}
    assert policy.fields == ("txt", "json:rewrites", "json:caption")
    with pytest.raises(ValueError, match="no policies"):
        AnyOf([])


@pytest.mark.parametrize(
    ("rewrite", "caption"),
    [
        (b"red house", "red house"),
        (b"house", "original caption"),
        (b" ", "original caption"),
        (None, "original caption"),
    ],
)
def test_a_rewrite_of_one_word_is_the_original(rewrite, caption):
    # As LaCLIP's loader does: `if len(caption.split(' ')) < 2`, the first caption.
    sample = {"__key__": "k", "txt": b"original caption"}
    if rewrite is not None:
        sample["rewrite"] = rewrite
    policy = NotTooShort(FirstFound(["rewrite"]))
    assert policy(sample, 0.5) == caption
    assert set(policy.fields) == {"rewrite", "txt"}


def test_what_cannot_be_read_is_not_replaced_by_the_original():
    sample = {"__key__": "k", "txt": b"original caption", "rewrite": b"\xff\xfe\xff"}
    with pytest.raises(SampleError, match="bad_text"):
        NotTooShort(FirstFound(["rewrite"]))(sample, 0.5)


def test_a_long_caption_is_what_the_fields_have():
    policy = Joined(["json:caption", "alt", "json:rewrites", "json:none", "txt"])
    assert policy(SAMPLE, 0.3) == "from json. one. two. three. original"
    assert FirstSentence(policy)(SAMPLE, 0.3) == "from json."
    with pytest.raises(SampleError, match="no_caption"):
        Joined(["alt"])(SAMPLE, 0.3)
    with pytest.raises(ValueError, match="must be a list"):
        Joined("txt")
