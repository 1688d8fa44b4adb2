"""Captions edited word by word."""

from collections import Counter

import pytest

from counterpoint.data.text.captions import WeightedChoice
from counterpoint.data.text.word_edits import WordEdits

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def edited(policy, text, draws=400):
    sample = {"__key__": "a", "txt": text.encode()}
    return [policy(sample, i / draws) for i in range(draws)]


def test_half_are_reordered_and_half_are_thinned():
    texts = [text.split() for text in edited(WordEdits(fraction=0.3), " ".join(WORDS))]
    whole = [text for text in texts if sorted(text) == sorted(WORDS)]
    thinned = [text for text in texts if len(text) < 10]
    # Now and then (0.7^10) nothing is left out.
    assert 160 < len(thinned) < 240
    assert len(whole) + len(thinned) == 400
    assert all(text == [word for word in WORDS if word in text] for text in thinned)
    swapped = [sum(a != b for a, b in zip(text, WORDS, strict=True)) for text in whole]
    assert max(swapped) <= 6 and sum(count == 0 for count in swapped) < 12
    left = Counter(word for text in thinned for word in text)
    assert all(0.55 < left[word] / len(thinned) < 0.85 for word in WORDS)


def test_something_is_left_and_single_words_stay():
    assert set(edited(WordEdits(fraction=0.6), "red fox")) == {"red fox", "fox red", "red", "fox"}
    assert set(edited(WordEdits(), "fox", 20)) == {"fox"}


def test_the_same_draw_gives_the_same_words_and_edits_are_independent_of_the_choice():
    policy = WordEdits(WeightedChoice({"txt": 1, "json:other": 1}), fraction=0.2)
    sample = {"__key__": "a", "txt": b"a b c d", "json": b'{"other": "e f g h"}'}
    texts = [policy(sample, i / 400) for i in range(400)]
    assert texts == [policy(sample, i / 400) for i in range(400)]
    for words in ("abcd", "efgh"):
        of_these = [text.split() for text in texts if text[0] in words]
        assert 0.4 < sum(sorted(text) == list(words) for text in of_these) / 200 < 0.9


def test_a_fraction_lies_between_0_and_1():
    with pytest.raises(ValueError, match=r"fraction=1\.5"):
        WordEdits(fraction=1.5)
