"""Near images: all pairs by hand, at every distance, and no work for popular hashes."""

import numpy as np
import pyarrow as pa
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.duplicates import near_images
from counterpoint.data.curate.filters.duplicates.near_images import NearImages
from counterpoint.data.hashing import mix, seeded

RNG = np.random.default_rng(0)


def hashes(count, originals, bits, masked=0):
    """Some hashes and copies of them in which up to `bits` bits are flipped."""
    base = RNG.integers(0, 1 << 63, originals, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    base &= ~np.uint64((1 << masked) - 1)
    found = base[RNG.integers(0, originals, count)]
    for _ in range(bits):
        found = found ^ (
            RNG.integers(0, 2, count, dtype=np.uint64)
            << RNG.integers(0, 64, count, dtype=np.uint64)
        )
    return found


def by_hand(found, distance, seed):
    order = mix(key_of(np.arange(len(found))), seeded(seed, "near images"))
    kept = set()
    for row in range(len(found)):
        bits = [bin(int(found[row] ^ other)).count("1") for other in found[order < order[row]]]
        if min(bits, default=65) > distance:
            kept.add(row)
    return kept


@pytest.mark.parametrize(
    ("distance", "divided"), [(0, 256), (1, 4), (3, 256), (3, 4), (7, 16), (10, 8)]
)
def test_pairs_are_those_of_all_pairs(tmp_path, monkeypatch, distance, divided):
    monkeypatch.setattr(near_images, "DIVIDED", divided)
    found = hashes(400, 90, min(distance + 2, 12), masked=20)
    expected = by_hand(found, distance, seed=5)
    assert 20 < len(expected) < 390
    columns = {"phash": found.view(np.int64).tolist()}
    assert keep(tmp_path, NearImages(distance=distance, seed=5), columns).keys() == expected


def test_equal_hashes_are_compared_once(monkeypatch):
    # A million blank images among others: the pairs that are looked at are those of the others.
    found = np.concatenate([np.zeros(1_000_000, dtype=np.uint64), hashes(300, 300, 0)])
    others = len(np.unique(found)) - 1
    assert others > 150
    seen = []
    runs = near_images._near_in_runs
    monkeypatch.setattr(
        near_images, "_near_in_runs", lambda h, *more: seen.append(len(h)) or runs(h, *more)
    )
    rows = pa.record_batch({"key": np.arange(len(found)), "phash": found.view(np.int64)})
    kept = NearImages().apply_groups(rows, np.array([0, len(found)]), {})["keep"]
    assert max(seen) <= others + 1
    assert kept[:1_000_000].sum() == 1 and kept[1_000_000:].sum() == others


def test_a_distance_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="distance=16: give 0 to 15"):
        NearImages(distance=16)
