"""SemDeDup: the paper's triangle of cosines in float64, and numbers that no blocks change."""

import numpy as np
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.duplicates.semdedup import SemDeDup
from counterpoint.data.curate.numerics import similarity
from counterpoint.data.curate.numerics.similarity import (
    centre_cosines,
    near_earlier,
    nearest,
    rounded,
)
from counterpoint.data.hashing import mix, seeded

RNG = np.random.default_rng(0)
N, WIDTH = 500, 24


def samples():
    """Clusters of samples; some of them are near another one."""
    cluster = RNG.integers(0, 7, N)
    rows = RNG.normal(size=(7, WIDTH))[cluster] + RNG.normal(size=(N, WIDTH))
    copies = RNG.integers(0, N, N // 2)
    noise = RNG.uniform(0.01, 0.5, (len(copies), 1))
    rows[: N // 2] = rows[copies] + noise * RNG.normal(size=(len(copies), WIDTH))
    cluster[: N // 2] = cluster[copies]
    return cluster, rows.astype(np.float16)


def by_hand(cluster, rows, epsilon, prefer, seed):
    """Kept rows; and how near any decision was to another one."""
    unit = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hashed = mix(key_of(np.arange(len(rows))), seeded(seed, "clusters"))
    kept, nearest_to_limit = set(), 1.0
    for number in np.unique(cluster):
        own = np.flatnonzero(cluster == number)
        centre = unit[own].mean(0)
        to_centre = unit[own] @ centre / np.linalg.norm(centre)
        order = {"far": to_centre, "near": -to_centre, "hash": hashed[own]}[prefer]
        own = own[np.argsort(order)]
        cosines = np.triu(unit[own] @ unit[own].T, 1)
        kept |= set(own[cosines.max(0) <= 1 - epsilon].tolist())
        nearest_to_limit = min(nearest_to_limit, np.abs(cosines - (1 - epsilon)).min())
    return kept, nearest_to_limit


@pytest.mark.parametrize("prefer", ["far", "near", "hash"])
def test_it_is_the_papers_triangle(tmp_path, prefer):
    cluster, rows = samples()
    expected, _ = by_hand(cluster, rows, 0.05, prefer, 4)
    stores = {"clip": {"image": rows}, "clusters": {"id": cluster}}
    kept = keep(tmp_path, SemDeDup(0.05, prefer=prefer, seed=4), {"width": [9] * N}, stores)
    assert 100 < len(kept) < 450
    # A cosine is off by 1e-4, which may decide about a pair or an order.
    assert len(kept.keys() ^ expected) <= 2


def test_no_blocks_change_it(monkeypatch):
    rows = rounded(samples()[1].astype(np.float32) / 5)
    one = near_earlier(rows, 0.9)
    monkeypatch.setattr(similarity, "BLOCK", 7)
    monkeypatch.setattr(similarity, "COLUMNS", 13)
    np.testing.assert_array_equal(near_earlier(rows, 0.9), one)
    assert 0 < one.sum() < len(one)


@pytest.mark.parametrize("width", [3, 512, 1536])
def test_products_are_exact(width):
    rows = RNG.normal(size=(300, width))
    rows[:5] = np.eye(width)[0]
    rows[5] = 0
    rows[6] = 1 / np.sqrt(width)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True).clip(min=1e-9)
    whole = rounded(rows.astype(np.float32))
    exact = whole.astype(np.int64) @ whole.astype(np.int64).T
    assert exact.max() <= 1 << 24
    np.testing.assert_array_equal((whole @ whole.T).astype(np.int64), exact)
    size = np.linalg.norm(whole.astype(np.float64), axis=1).clip(min=1)
    assert np.abs(exact / np.outer(size, size) - rows @ rows.T).max() < 1e-3


def test_cosines_with_a_centre_and_the_nearest_centre():
    rows = samples()[1].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = rounded(rows.astype(np.float32))
    centre = rows.mean(0) / np.linalg.norm(rows.mean(0))
    np.testing.assert_allclose(centre_cosines(whole), rows @ centre, atol=1e-3)
    centres = np.concatenate([whole[100:140], whole[100:101]])
    cosines = rows @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    found = nearest(whole, centres)
    assert found[100:140].tolist() == list(range(40))
    assert (cosines.max(1) - cosines[np.arange(N), found]).max() < 1e-3


def test_a_limit_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="epsilon=0: give 1e-5 to 1"):
        SemDeDup(epsilon=0)
