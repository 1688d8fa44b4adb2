"""How many samples share a caption, against counting, through the runner."""

from collections import Counter

import numpy as np
import pytest
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.captions.caption_frequency import CaptionFrequency
from counterpoint.data.curate.runner import Curation

N = 500
HASHES = (np.random.default_rng(0).pareto(1.0, N).astype(int) - 3).tolist()
KEY = {row * 7919 - 10**6: each for row, each in enumerate(HASHES)}


@pytest.mark.parametrize("shards", [[N], [99, 1, 400]])
def test_captions_of_many_samples_go(tmp_path, shards):
    order = np.random.default_rng(1).permutation(N)
    table = make_table(tmp_path / "table", {"caption_hash": HASHES}, shards, order)
    counts = Counter(HASHES)
    limit = sorted(set(counts.values()))[3]  # so many do have the same caption
    Curation(table, {"captions": CaptionFrequency(limit)}, {}, tmp_path / "out").run()
    assert set(kept(tmp_path / "out")) == {k for k, each in KEY.items() if counts[each] <= limit}
    assert max(counts.values()) > 100 > limit > min(counts.values())


def test_a_limit_of_none_is_refused():
    with pytest.raises(ValueError, match="max_samples=0 leaves none"):
        CaptionFrequency(0)
