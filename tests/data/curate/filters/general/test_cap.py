"""The cap: so many of each value, those of the lowest hashes."""

from collections import defaultdict

import numpy as np
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.general.cap import Cap
from counterpoint.data.hashing import mix, seeded


@pytest.mark.parametrize("kind", ["text", "number"])
def test_so_many_of_each_value_stay(tmp_path, kind):
    value = np.random.default_rng(0).zipf(1.5, 500) % 40
    hashed = mix(key_of(np.arange(500)), seeded(9, "cap"))
    rows_of = defaultdict(list)
    for row in np.argsort(hashed).tolist():
        rows_of[value[row]].append(row)
    expected = {row for rows in rows_of.values() for row in rows[:6]}
    column = [f"style {v}" for v in value] if kind == "text" else value.tolist()
    kept = keep(tmp_path, Cap("value", at_most=6, seed=9), {"value": column})
    assert 60 < len(kept) < 240 and kept.keys() == expected


def test_a_cap_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="at_most=0 leaves nothing"):
        Cap("value", at_most=0)
