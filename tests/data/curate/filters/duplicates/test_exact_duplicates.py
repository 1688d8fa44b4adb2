"""Exact duplicates: of what is equal, the sample with the lowest hash stays."""

import numpy as np
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.duplicates.exact_duplicates import ExactDuplicates
from counterpoint.data.hashing import mix, seeded

RNG = np.random.default_rng(0)
IMAGES, CAPTIONS = RNG.integers(0, 40, 300).tolist(), RNG.integers(0, 8, 300).tolist()
EQUAL = {
    "image": IMAGES,
    "caption": CAPTIONS,
    "pair": list(zip(IMAGES, CAPTIONS, strict=True)),
}


@pytest.mark.parametrize("of", EQUAL)
def test_one_of_what_is_equal_stays(tmp_path, of):
    hashed = mix(key_of(np.arange(300)), seeded(5, "duplicates"))
    first = {}
    for row in np.argsort(hashed).tolist():
        first.setdefault(EQUAL[of][row], row)
    columns = {"image_hash": IMAGES, "caption_hash": CAPTIONS}
    kept = keep(tmp_path, ExactDuplicates(of, seed=5), columns)
    assert kept.keys() == set(first.values()) and len(kept) == len(set(EQUAL[of])) < 300
