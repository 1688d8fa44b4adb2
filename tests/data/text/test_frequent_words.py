"""Words of captions that stay, against CLIPF's formula."""

import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.score_table import make_table

from counterpoint.data.curate.filters.captions.word_frequency import WordFrequency
from counterpoint.data.curate.runner import Curation
from counterpoint.data.hashing import text_hash
from counterpoint.data.text.frequent_words import RareWords

DRAWS = [(i + 0.5) / 4000 for i in range(4000)]
CAPTIONS = ["the dog", "the cat", "the the bird", "the naïve dog runs"] * 20 + ["one unicorn"]


def sample(caption):
    return {"__key__": "k", "txt": caption.encode()}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """What a curation counts in the captions above."""
    folder = tmp_path_factory.mktemp("words")
    pool = make_table(folder / "table", {"caption": CAPTIONS}, [40, 41])
    Curation(pool, {"score": WordFrequency(0.01, rare="negative")}, {}, folder / "out").run()
    return str(folder / "out" / "tables" / "score.parquet")


@pytest.fixture
def written(tmp_path):
    """Writes a table of P by word."""

    def write(chances):
        chances = dict(sorted(chances.items(), key=lambda item: text_hash(item[0])))
        hashes = [text_hash(word) for word in chances]
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        pq.write_table(pa.table({"word": hashes, "masked": list(chances.values())}), path)
        return str(path)

    return write


def test_the_table_is_the_papers_formula(table):
    counts = Counter(word for caption in CAPTIONS for word in caption.split())
    counts = {word: n for word, n in counts.items() if n >= 5}
    total = sum(counts.values())
    wanted = {text_hash(w): 1 - math.sqrt(0.01 / (n / total)) for w, n in counts.items()}
    found = pq.read_table(table).to_pydict()
    assert dict(zip(found["word"], found["masked"], strict=True)) == pytest.approx(wanted)
    assert "unicorn" not in counts


@pytest.mark.parametrize(("one", "other"), [(0.9, 0.9), (0.2, 0.9), (-3.0, 0.5), (0.6, 0.8)])
def test_of_two_words_the_rarer_stays_as_often_as_the_formula_says(written, one, other):
    policy = RareWords(written({"rare": one, "often": other}), 1)
    kept = Counter(policy(sample("often rare"), draw) for draw in DRAWS)
    # u1 - p1 > u2 - p2 with both u uniform.
    d = min(other - one, 1)
    wanted = 1 - (1 - d) ** 2 / 2
    assert set(kept) <= {"rare", "often"}
    assert kept["rare"] / 4000 == pytest.approx(wanted, abs=0.03)


def test_words_without_an_entry_are_masked_first(written):
    policy = RareWords(written({"dog": -1.0, "house": -1.0}), 2)
    for draw in DRAWS[::100]:
        assert policy(sample("zyx a dog, of house"), draw) == "dog house"


def test_words_stay_in_order_and_differ_from_epoch_to_epoch(table):
    policy = RareWords(table, 3)
    words = ["the", "naïve", "dog", "runs", "the", "bird", "cat"]
    found = {policy(sample("The naïve dog runs the bird cat"), draw) for draw in DRAWS[::20]}
    assert len(found) > 10
    for caption in found:
        at = iter(words)
        assert len(caption.split()) == 3 and all(word in at for word in caption.split())
    assert policy(sample("the dog runs"), 0.2) == "the dog runs"
    again = RareWords(table, 3)
    assert all(
        policy(sample(" ".join(words)), d) == again(sample(" ".join(words)), d) for d in DRAWS[:9]
    )


def test_a_choice_of_another_policy_tells_nothing_about_the_words(written):
    """Two halves of the draws, which choose among two texts, keep the same words equally often."""
    policy = RareWords(written({"a": 0.5, "b": 0.5}), 1)
    halves = [
        Counter(policy(sample("a b"), d) for d in part) for part in (DRAWS[:2000], DRAWS[2000:])
    ]
    assert np.abs(halves[0]["a"] - halves[1]["a"]) < 150


def test_what_cannot_be_read_is_one_sentence(tmp_path, written):
    with pytest.raises(ValueError, match=r"cannot be read.*counterpoint curate clipf"):
        RareWords(str(tmp_path / "absent.parquet"), 3)(sample("a"), 0.5)
    pq.write_table(pa.table({"class": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match="is no table of words"):
        RareWords(str(tmp_path / "other.parquet"), 3)(sample("a"), 0.5)
    with pytest.raises(ValueError, match="min_count: 1"):
        RareWords(written({}), 3)(sample("a"), 0.5)
    with pytest.raises(ValueError, match="num_words=0"):
        RareWords("x", 0)
