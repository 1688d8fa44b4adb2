"""WFPP's score against the paper's formulas in plain Python."""

import math
from collections import Counter

import numpy as np
import pytest
import regex
from helpers.filter_run import batch_of, run_filter
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.captions.word_frequency import WordFrequency
from counterpoint.data.curate.filters.general.threshold import Threshold
from counterpoint.data.curate.runner import Curation

RNG = np.random.default_rng(2)
VOCABULARY = [
    "a",
    "of",
    "dog",
    "cat's",
    "Dog",
    "naïve",
    "犬",
    "2024",
    "x-ray",
    "!!",
    *(f"w{'z' * n}" for n in range(90)),
]
CHANCES = 1 / np.arange(1, 101) ** 1.5
CAPTIONS = [
    " ".join(RNG.choice(VOCABULARY, size, p=CHANCES / CHANCES.sum()))
    for size in RNG.integers(0, 50, 800)
]
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def expected(t, rare, captions=CAPTIONS):
    words = [regex.findall(PATTERN, text.lower()) for text in captions]
    counts = Counter(word for part in words for word in part)
    counts = {word: n for word, n in counts.items() if n >= 5}
    total = sum(counts.values())
    discard = {}
    for word, n in counts.items():
        p = 1 - math.sqrt(t / (n / total))
        discard[word] = p if p >= 0 else {"clamp": 0.0, "neutral": 1.0}[rare]
    scores = []
    for part in words:
        part = part[:30]
        product = math.prod(discard.get(word, 1.0) for word in part)
        scores.append((1 - product) / len(part) if part else 0.0)
    return scores, discard


@pytest.mark.parametrize("rare", ["clamp", "neutral"])
@pytest.mark.parametrize("t", [1e-7, 1e-3])
@pytest.mark.parametrize("pieces", [1, 9])
def test_scores_are_the_formula(t, rare, pieces):
    found = run_filter(WordFrequency(t, rare=rare), batch_of({"caption": CAPTIONS}), pieces)
    scores, discard = expected(t, rare)
    np.testing.assert_allclose(found["wfpp"], scores, rtol=1e-9, atol=1e-15)
    assert "" in CAPTIONS and max(map(len, CAPTIONS)) > 150
    if t == 1e-3:  # some words are rarer than t, and some of those that are not counted occur
        assert 5 < sum(p in (0.0, 1.0) for p in discard.values()) < 80
        assert scores != expected(t, "clamp" if rare == "neutral" else "neutral")[0]


def test_a_case_by_hand():
    """4 words of 60: f = 1/4, so p = 1 - sqrt(4 t); the fifth is too rare to be counted."""
    captions = ["one two three four"] * 15 + ["odd one"]
    found = run_filter(WordFrequency(0.01, num_words=3), batch_of({"caption": captions}))["wfpp"]
    one, others = 16 / 61, 15 / 61
    p_one, p_other = 1 - math.sqrt(0.01 / one), 1 - math.sqrt(0.01 / others)
    assert found[0] == pytest.approx((1 - p_one * p_other**2) / 3)
    assert found[-1] == pytest.approx((1 - p_one) / 2)


@pytest.mark.parametrize("shards", [[800], [3, 397, 400]])
def test_the_best_half_stays(tmp_path, shards):
    order = np.random.default_rng(len(shards)).permutation(800)
    table = make_table(tmp_path / "table", {"caption": CAPTIONS}, shards, order)
    filters = {"score": WordFrequency(), "best": Threshold("wfpp", 0.5)}
    Curation(table, filters, {}, tmp_path / "out").run()
    keys = kept(tmp_path / "out")
    scores, _ = expected(1e-7, "clamp")
    median = np.sort(scores)[400]
    clear = np.abs(np.array(scores) - median) > median * 1e-4
    assert clear.sum() > 700 and abs(len(keys) - 400) <= (~clear).sum()
    for row in np.flatnonzero(clear):
        assert (row * 7919 - 10**6 in keys) == (scores[row] > median)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="t=0 is not between"):
        WordFrequency(0)
    with pytest.raises(ValueError, match="min_count=0 and num_words=30"):
        WordFrequency(min_count=0)
