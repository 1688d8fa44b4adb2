"""Near captions: exact similarities by sets in Python, and the probability of meeting."""

import itertools
import random
import re

import numpy as np
import pyarrow as pa
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.duplicates.near_captions import NearCaptions, Shingles
from counterpoint.data.hashing import mix, seeded

WORDS = [
    "red",
    "Fire-Truck",
    "on",
    "a",
    "road",
    "Straße",
    "猫と犬",
    "no. 17",
    "woman",
    "firefighter",
]
WORDS += ["medium", "skin", "tone", "sunset", "beach", "photo", "of", "the", "old", "harbour"]


def captions(count):
    draw = random.Random(0)
    base = [draw.choices(WORDS, k=draw.randint(3, 14)) for _ in range(count // 4)]
    found = ["", "!", "?!", "x", "  X."]
    while len(found) < count:
        words = list(draw.choice(base))
        for _ in range(draw.randint(0, 3)):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        found.append(draw.choice([" ", "  ", ", "]).join(words))
    return found


def shingles(caption):
    text = " ".join(re.findall(r"[^\W_]+", caption.lower())) or caption.strip()
    data = f" {text} ".encode().ljust(5)
    return {data[at : at + 5] for at in range(len(data) - 4)}


def similarity(one, other):
    return len(one & other) / len(one | other)


def test_similarities_are_those_of_the_sets():
    found = sorted(set(captions(150)))
    sets = [shingles(caption) for caption in found]
    one, other = np.array(list(itertools.combinations(range(len(found)), 2))).T
    expected = [similarity(sets[a], sets[b]) for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(Shingles(found).jaccard(one, other), expected, rtol=1e-12)


def test_what_is_left_out_is_near_an_earlier_caption(tmp_path):
    found = captions(400)
    order = mix(key_of(np.arange(len(found))), seeded(3, "near captions"))
    sets = [shingles(caption) for caption in found]
    expected = set()
    for row in range(len(found)):
        earlier = np.flatnonzero(order < order[row])
        if all(similarity(sets[row], sets[other]) < 0.7 for other in earlier):
            expected.add(row)
    # 60 bands of 3 miss a pair of similarity 0.7 with a probability of 1e-11.
    kept = keep(tmp_path, NearCaptions(0.7, bands=60, rows=3, seed=3), {"caption": found})
    assert 50 < len(expected) < 350 and kept.keys() == expected


def test_captions_meet_as_often_as_their_similarity_says():
    # One band of one minimum: two captions meet with a probability of their similarity.
    found = [
        f"{word * 3} {other}" for word in ("alpha", "beta") for other in ("gamma", "delta", "x")
    ]
    rows = pa.record_batch({"caption": found})
    minima = NearCaptions(bands=4000, rows=1).groups(rows, {})
    for one, other in itertools.combinations(range(len(found)), 2):
        exact = similarity(shingles(found[one]), shingles(found[other]))
        assert abs((minima[one] == minima[other]).mean() - exact) < 0.05


def test_the_parts_have_all_bands():
    rows, whole = pa.record_batch({"caption": captions(20)}), NearCaptions(bands=10)
    parts = [part.groups(rows, {}) for part in whole.parts()]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole.groups(rows, {}))


def test_work_in_a_band_is_bounded(monkeypatch):
    asked = []
    jaccard = Shingles.jaccard
    monkeypatch.setattr(
        Shingles, "jaccard", lambda self, a, b: asked.append(len(a)) or jaccard(self, a, b)
    )
    found = [f"{row:09d}" for row in range(2000)] + ["the same"] * 2000
    rows = pa.record_batch({"caption": found, "key": np.arange(4000)})
    kept = NearCaptions(compared=8).apply_groups(rows, np.array([0, 4000]), {})["keep"]
    assert sum(asked) <= 8 * 2001
    assert kept[2000:].sum() == 1


@pytest.mark.parametrize("setting", ["similarity", "bands", "rows", "compared"])
def test_settings_that_cannot_be_are_refused(setting):
    with pytest.raises(ValueError, match=f"{setting}=0: give"):
        NearCaptions(**{setting: 0})
