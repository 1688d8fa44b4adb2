"""How many samples share a caption, against counting, through the runner."""

from collections import Counter

import numpy as np
import pytest
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.caption_frequency import CaptionFrequency
from counterpoint.data.curate.runner import Curation

N = 500
HASHES = (np.random.default_rng(0).pareto(1.0, N).astype(int) - 3).tolist()
KEY = {row * 7919 - 10**6: each for row, each in enumerate(HASHES)}


def run(folder, shards, order=None, **settings):
    table = make_table(folder / "table", {"caption_hash": HASHES}, shards, order)
    Curation(table, {"captions": CaptionFrequency(**settings)}, {}, folder / "out").run()
    return set(kept(folder / "out"))


def test_captions_of_many_samples_go(tmp_path):
    counts = Counter(HASHES)
    assert run(tmp_path, [N], max_samples=20) == {
        k for k, each in KEY.items() if counts[each] <= 20
    }
    assert max(counts.values()) > 100


def test_some_of_them_stay(tmp_path):
    keys = run(tmp_path / "a", [N], max_samples=20, beyond="some")
    left = Counter(KEY[key] for key in keys)
    assert left == {each: min(n, 20) for each, n in Counter(HASHES).items()}
    order = np.random.default_rng(1).permutation(N)
    assert run(tmp_path / "b", [99, 1, 400], order, max_samples=20, beyond="some") == keys
    assert run(tmp_path / "c", [N], max_samples=20, beyond="some", seed=1) != keys
    fewer = run(tmp_path / "d", [N], max_samples=10, beyond="some")
    assert fewer < keys


def test_a_limit_of_none_is_refused():
    with pytest.raises(ValueError, match="max_samples=0 leaves none"):
        CaptionFrequency(0)
