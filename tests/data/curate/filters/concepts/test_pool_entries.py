"""Words and pairs against counting in plain Python, and the way on to matching."""

import itertools
import math
import string
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.filter_run import batch_of, run_filter, state_of
from helpers.score_table import make_table

from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts
from counterpoint.data.curate.filters.concepts.pool_entries import PoolEntries
from counterpoint.data.curate.runner import Curation

RNG = np.random.default_rng(4)
WORDS = ["a", "the", "New", "York", "red", "Straße", "犬", "!", "x.", "two,", *"bcdefghij"]
CHANCES = 1 / np.arange(1, len(WORDS) + 1)
CAPTIONS = [
    " ".join(
        word if word != "New" or RNG.random() < 0.2 else "New York"
        for word in RNG.choice(WORDS, size, p=CHANCES / CHANCES.sum())
    )
    for size in RNG.integers(0, 9, 900)
]


def expected(min_count, min_pair_count, min_pmi):
    def cut(text):
        for mark in ",.;:?!`":
            text = text.replace(mark, f" {mark} ")
        return text.split()

    words = [cut(text) for text in CAPTIONS]
    counts = Counter(word for part in words for word in part)
    pairs = Counter(pair for part in words for pair in itertools.pairwise(part))
    rows: list[tuple[str, int, float | None]] = [
        (word, n, None)
        for word, n in counts.items()
        if n >= min_count and word not in string.punctuation
    ]
    for (one, other), n in pairs.items():
        pmi = math.log2(n * sum(counts.values()) / (counts[one] * counts[other]))
        if n >= min_pair_count and pmi >= min_pmi and not {one, other} & set(string.punctuation):
            rows.append((f"{one} {other}", n, pmi))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


@pytest.mark.parametrize("pieces", [1, 8])
@pytest.mark.parametrize("limits", [(100, 20, 1.0), (1, 1, -30.0), (10**6, 5, 0.5)])
def test_entries_are_those_counted(limits, pieces):
    each, rows = PoolEntries(*limits), batch_of({"caption": CAPTIONS})
    table = each.table(state_of(each, rows, pieces)).to_pydict()
    wanted = expected(*limits)
    assert table["entry"] == [name for name, _, _ in wanted]
    assert table["count"] == [count for _, count, _ in wanted]
    for found, (_, _, pmi) in zip(table["pmi"], wanted, strict=True):
        assert found == (pmi if pmi is None else pytest.approx(pmi))
    if limits[0] == 100:
        assert "New York" in table["entry"] and "!" not in table["entry"]
        assert 3 < len(wanted) < 15


def test_what_just_reaches_every_limit_is_an_entry():
    """Two words that come four times, together: pmi = log2(4 * 8 / 4^2) = 1."""
    each, rows = PoolEntries(4, 4, 1.0), batch_of({"caption": ["one two"] * 4})
    assert each.table(state_of(each, rows))["entry"].to_pylist() == ["one", "one two", "two"]


def test_its_table_is_a_list_of_entries(tmp_path):
    table = make_table(tmp_path / "table", {"caption": CAPTIONS}, [400, 500])
    filters = {"entries": PoolEntries(1, 20, 1.0)}
    summary = Curation(table, filters, {}, tmp_path / "out").run()
    assert summary["kept"] == 900
    path = tmp_path / "out/tables/entries.parquet"
    counts = pq.read_table(path)["count"].to_pylist()
    found = run_filter(MatchConcepts(path), batch_of({"caption": CAPTIONS}))["concepts"]
    # A word counts once in a caption there, and every time here.
    matched = Counter(number for row in found for number in row)
    assert len(matched) == len(counts) > 10
    assert all(0.5 * counts[number] < n <= counts[number] for number, n in matched.items())
