"""Sizes, overlaps and random subsets against sets of Python."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_ablation import write_keep_list

from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.launch.experiments.ablation import subsets
from counterpoint.launch.experiments.ablation.subsets import (
    draw,
    read_subset,
    sizes_of_random,
    whole_pool,
    write_random,
)

COUNTS = [100, 3, 57, 1, 339]


def manifest(counts=COUNTS, sources=None):
    urls = [f"{i:05d}.tar" for i in range(len(counts))]
    columns = [
        sources or ["web"] * len(counts),
        urls,
        counts,
        [1] * len(counts),
        [""] * len(counts),
    ]
    return Manifest(pa.table(columns, schema=SCHEMA), "/shards")


def members(path):
    table = pq.read_table(path)
    return set(zip(table["shard"].to_pylist(), table["index"].to_pylist(), strict=True))


def test_overlaps_are_those_of_sets(tmp_path):
    rng, pool = np.random.default_rng(0), manifest()
    everything = [(s, i) for s, num in enumerate(COUNTS) for i in range(num)]
    chosen = [{everything[i] for i in rng.choice(500, n, replace=False)} for n in (120, 300)]
    one, two = (
        read_subset([write_keep_list(tmp_path / f"{n}.parquet", list(rows))], pool, tmp_path)
        for n, rows in enumerate(chosen)
    )
    assert (one.size, two.size) == (120, 300)
    assert one.common(two) == two.common(one) == len(chosen[0] & chosen[1])
    assert one.jaccard(two) == len(chosen[0] & chosen[1]) / len(chosen[0] | chosen[1])
    assert one.common(whole_pool(pool)) == 120 and one.jaccard(one) == 1
    assert one.of_shard(100, 103).tolist() == [(1, i) in chosen[0] for i in range(3)]


def test_samples_of_weight_zero_are_not_in_a_subset(tmp_path):
    rows = [(0, 3), (2, 5), (4, 338)]
    file = write_keep_list(tmp_path / "w.parquet", rows, weight=[0.5, 0.0, 3.0])
    found = read_subset([file], manifest(), tmp_path)
    assert found.size == 2 and not found.of_shard(103, 160).any()


@pytest.mark.parametrize("size", [1, 250, 499, 500])
def test_a_random_subset_has_its_size_and_is_the_same_everywhere(tmp_path, size):
    pool = manifest()
    write_random(tmp_path / "a.parquet", pool, whole_pool(pool), size, 7)
    write_random(tmp_path / "b.parquet", pool, whole_pool(pool), size, 7)
    write_random(tmp_path / "c.parquet", pool, whole_pool(pool), size, 8)
    a, b, c = (members(tmp_path / f"{name}.parquet") for name in "abc")
    assert len(a) == size and a == b
    assert size == 500 or a != c
    assert read_subset([tmp_path / "a.parquet"], pool, tmp_path / "cache").size == size


def test_every_sample_is_as_likely(tmp_path):
    pool, times = manifest(), np.zeros(500)
    starts = np.cumsum([0, *COUNTS])
    for seed in range(60):
        for shard, indices in draw(pool, whole_pool(pool), 125, seed):
            times[starts[shard] + indices] += 1
    assert times.sum() == 60 * 125
    # Binomial: 15 of 60, standard deviation 3.35; the chi-square of 500 such counts.
    chi_square = ((times - 15) ** 2 / (15 * 0.75)).sum()
    assert 400 < chi_square < 600 and times.max() < 15 + 5 * 3.36


def test_equal_hashes_and_a_restricted_pool(tmp_path, monkeypatch):
    """Four values of the hash only: most samples tie, and are taken in the order of the shards."""
    monkeypatch.setattr(subsets, "mix", lambda i, key: (i.astype(np.uint64) % 4) << np.uint64(62))
    pool = manifest()
    everything = [(s, i) for s, num in enumerate(COUNTS) for i in range(0, num, 2)]
    file = write_keep_list(tmp_path / "even.parquet", everything)
    even = read_subset([file], pool, tmp_path)
    found = [(s, i) for s, indices in draw(pool, even, 140, 0) for i in indices.tolist()]
    in_order = sorted(everything, key=lambda row: (row[1] % 4, row))
    assert sorted(found) == sorted(in_order[:140])


def test_names_that_come_twice_are_written_in_full(tmp_path):
    columns = [["a", "b"], ["x/0.tar", "y/0.tar"], [4, 4], [1, 1], ["", ""]]
    pool = Manifest(pa.table(columns, schema=SCHEMA), "/shards")
    write_random(tmp_path / "r.parquet", pool, whole_pool(pool), 5, 0)
    assert {shard for shard, _ in members(tmp_path / "r.parquet")} == {
        *("/shards/x/0.tar", "/shards/y/0.tar")
    }
    assert read_subset([tmp_path / "r.parquet"], pool, tmp_path / "cache").size == 5


def test_sizes_within_half_a_percent_share_a_random_subset():
    shared = sizes_of_random([1000, 1004, 1006, 300, 9951, 10_000, 300], 10_000)
    assert shared == {300: 300, 1000: 1002, 1004: 1002, 1006: 1006, 9951: None, 10_000: None}
