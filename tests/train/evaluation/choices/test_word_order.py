"""Captions against their words in another order."""

from collections import Counter

import numpy as np
import pytest
from vector_model import NAMES, Classes, features, run, texts

from counterpoint.train.evaluation.choices.word_order import (
    MAX_WORDS,
    SHUFFLES,
    WordOrder,
    words_of,
)

WORDS = ["red", "big", "on", "hill", "sees", "two"]


def captioned(i, name):
    tail = [WORDS[(i + k) % 6] for k in range(2 + i % 4)]
    return {"captions": [f"{name} {' '.join(tail)}.", "Zzz"]}


DATA = Classes(60, noise=90, seed=2, fields=captioned)


def task(**options):
    return WordOrder(data=DATA, captions="captions", **options)


def draws(name, words):
    rng = np.random.default_rng(0)
    return [SHUFFLES[name](words, rng) for _ in range(200)]


def groups(words):
    return [tuple(words[i : i + 3]) for i in range(0, len(words), 3)]


def test_shuffles_move_groups_of_three_or_words_inside_them():
    words = list("abcdefgh")
    for shuffled in draws("trigrams", words):
        text = "".join(shuffled)
        assert all("".join(group) in text for group in groups(words)) and len(text) == 8
    assert len({"".join(each) for each in draws("trigrams", words)}) == 6  # 3 groups
    for shuffled in draws("within_trigrams", words):
        assert [set(each) for each in groups(shuffled)] == [set(each) for each in groups(words)]
    assert len({"".join(each) for each in draws("within_trigrams", words)}) > 40  # of 72
    for shuffled in draws("words", words):
        assert Counter(shuffled) == Counter(words)
    assert len({"".join(each) for each in draws("words", words)}) > 190


def test_captions_are_asked_as_in_aro():
    assert words_of('The "DOG" (brown); runs ~ fast!') == ["the", "dog", "brown", "runs", "fast"]
    assert len(words_of("word " * 50)) == MAX_WORDS == 30


def test_a_caption_has_to_beat_its_shuffled_words():
    asked = task(shuffles=["trigrams", "within_trigrams", "words"])
    results = run(asked)
    image, right, by_kind = features(DATA), [], {}
    for question, kinds in zip(asked._questions, asked._kinds, strict=True):
        own, *others = texts([question.right, *question.wrong]) @ image[question.item]
        right.append(all(own > other for other in others))
        for kind, other in zip(kinds, others, strict=True):
            by_kind.setdefault(kind, []).append(own > other)
        for kind, text in zip(kinds, question.wrong, strict=True):
            words, shuffled = question.right.split(), text.split()
            assert Counter(words) == Counter(shuffled) and words != shuffled
            if kind == "trigrams":
                assert len(words) > 3
            elif kind == "within_trigrams":
                assert [set(e) for e in groups(words)] == [set(e) for e in groups(shuffled)]
    assert results["accuracy"] == pytest.approx(np.mean(right))
    for kind, values in by_kind.items():
        assert results[f"{kind}_accuracy"] == pytest.approx(np.mean(values))
    assert 0 < results["accuracy"] < results["words_accuracy"]
    # One word has no other order, three no other order of groups.
    assert len(right) == 60 and len(by_kind["trigrams"]) == 45


def test_draws_depend_on_the_seed_and_the_caption_alone():
    def wrong(**options):
        asked = task(**options)
        asked.prepare()
        return {question.key: question.wrong for question in asked._questions}

    assert wrong() == wrong() != wrong(seed=1)
    some = wrong(where={"cls": NAMES[:2]})
    assert some == {key: value for key, value in wrong().items() if key in some}


def test_mistakes_are_one_sentence():
    with pytest.raises(ValueError, match="shuffles: nouns is not among trigrams, within_trigrams"):
        task(shuffles=["nouns"])
    with pytest.raises(ValueError, match="shuffles: none is not among"):
        task(shuffles=[])
    with pytest.raises(ValueError, match="no caption 'cls' of the images has another order"):
        WordOrder(data=DATA, captions="cls").prepare()
