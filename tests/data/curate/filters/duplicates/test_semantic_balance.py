"""Semantic balance: the cap and the core of a cluster, by hand in float64."""

import numpy as np
import pytest
from helpers.curated import keep, key_of

from counterpoint.data.curate.filters.duplicates.semantic_balance import SemanticBalance
from counterpoint.data.hashing import mix, seeded

N, WIDTH = 300, 16


def samples():
    draw = np.random.default_rng(2)
    cluster = draw.integers(0, 6, N)
    spread = np.array([0.05, 0.2, 0.5, 1, 2, 0.1])[cluster, None]
    rows = draw.normal(size=(6, WIDTH))[cluster] + spread * draw.normal(size=(N, WIDTH))
    return cluster, rows.astype(np.float32)


def by_hand(cluster, rows, at_most, threshold, prefer):
    unit = rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True)
    hashed = mix(key_of(np.arange(N)), seeded(0, "clusters"))
    kept = set()
    for number in np.unique(cluster):
        own = np.flatnonzero(cluster == number)
        centre = unit[own].mean(0)
        cosine = unit[own] @ centre / np.linalg.norm(centre)
        rank = {"far": cosine, "near": -cosine, "hash": hashed[own]}[prefer]
        order = np.argsort(rank)
        stay, cores = [], 0
        for row, to_centre in zip(own[order], cosine[order], strict=True):
            if threshold is not None and to_centre > threshold:
                cores += 1
                if cores > 1:
                    continue
            stay.append(int(row))
        kept |= set(stay[:at_most])
    return kept


@pytest.mark.parametrize(
    ("at_most", "threshold", "prefer"),
    [(7, None, "far"), (7, None, "near"), (20, 0.9, "hash"), (None, 0.9, "far")],
)
def test_clusters_are_thinned_out(tmp_path, at_most, threshold, prefer):
    cluster, rows = samples()
    expected = by_hand(cluster, rows, at_most, threshold, prefer)
    stores = {"clip": {"image": rows}, "clusters": {"id": cluster}}
    each = SemanticBalance(at_most, threshold, prefer=prefer)
    kept = keep(tmp_path, each, {"width": [9] * N}, stores)
    assert 30 < len(kept) < 250
    # A cosine is off by 1e-4, which may decide about an order.
    assert len(kept.keys() ^ expected) <= 2


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "neither at_most nor threshold is given"),
        ({"at_most": 0}, "at_most=0 leaves nothing"),
        ({"threshold": 1.0}, "threshold=1.0 is no cosine below 1"),
    ],
)
def test_limits_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        SemanticBalance(**settings)
