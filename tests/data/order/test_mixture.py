"""Proportions hold in every window, and positions resolve alone as in the sequence."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.order.mixture import Mixture

share_lists = st.lists(st.floats(0.001, 1), min_size=1, max_size=9)


def mixture(shares, seed=0) -> Mixture:
    return Mixture({f"s{number}": share for number, share in enumerate(shares)}, seed)


@pytest.mark.parametrize(
    "shares",
    [
        [0.7, 0.2, 0.1],
        [0.5, 0.5],
        [0.45, 0.45, 0.1],
        [0.41, 0.2, 0.2, 0.19],
        [0.34, 0.33, 0.33],
        [0.97, 0.01, 0.01, 0.01],
        [0.21, 0.19, 0.17, 0.13, 0.11, 0.07, 0.05, 0.04, 0.02, 0.01],
        [5, 3, 2, 1, 1, 0],
    ],
)
@pytest.mark.parametrize("first", [0, 999_999_950_000])
def test_every_window_of_10000_has_every_share(shares, first):
    sources, _ = mixture(shares, seed=7).locate(np.arange(first, first + 50_000))
    hits = sources[:, None] == np.arange(len(shares))
    counts = np.concatenate([np.zeros((1, len(shares)), int), np.cumsum(hits, axis=0)])
    wanted = 10_000 * np.array(shares) / sum(shares)
    assert np.abs(counts[10_000:] - counts[:-10_000] - wanted).max() < 10
    aligned = counts[::10_000]
    assert np.abs(np.diff(aligned, axis=0) - wanted).max() < 2.01


@given(share_lists, st.integers(0, 2**40), st.integers(1, 700).map(lambda n: 16 * n))
def test_windows_of_whole_groups_are_within_four_samples(shares, group, length):
    sources, _ = mixture(shares).locate(np.arange(16 * group, 16 * group + length))
    counts = np.bincount(sources, minlength=len(shares))
    wanted = [length * Fraction(share) / sum(map(Fraction, shares)) for share in shares]
    assert max(abs(c - w) for c, w in zip(counts.tolist(), wanted, strict=True)) < 4.01


@given(share_lists, st.integers(0, 2**62), st.integers(0, 300), st.integers(1, 200))
def test_each_source_counts_on_from_zero(shares, seed, first, length):
    mixed = mixture(shares, seed)
    sources, numbers = mixed.locate(np.arange(first + length))
    seen = [0] * len(shares)
    for source, number in zip(sources.tolist(), numbers.tolist(), strict=True):
        assert number == seen[source]
        seen[source] += 1
    later = mixed.locate(np.arange(first, first + length))
    assert [part.tolist() for part in later] == [
        part[first:].tolist() for part in (sources, numbers)
    ]
    shuffled = np.random.default_rng(0).permutation(first + length)
    anyhow = mixed.locate(shuffled)
    assert np.array_equal(anyhow[0], sources[shuffled])
    assert np.array_equal(anyhow[1], numbers[shuffled])


@settings(max_examples=30)
@given(share_lists, st.integers(0, 10**12))
def test_numbers_far_out_are_exact(shares, first):
    """Counts at a trillion follow from the weights, in Python's integers, down a path of nodes."""
    mixed = mixture(shares)
    first = first // 16 * 16
    sources, numbers = mixed.locate(np.arange(first, first + 16))
    total = 0
    for source in range(len(shares)):
        count = prefix(mixed._root, source, first)
        assert count is not None and abs(count - first * Fraction(mixed_share(mixed, source))) < 4
        own = numbers[sources == source].tolist()
        assert own == list(range(count, count + len(own)))
        total += count
    assert total == first


def mixed_share(mixed: Mixture, source: int) -> Fraction:
    return Fraction(int(mixed.weights[source]), 1 << 24)


def prefix(node, source: int, count: int) -> int | None:
    if isinstance(node, int):
        return count if node == source else None
    left, right, part, whole = node
    below = count * part // whole
    found = prefix(left, source, below)
    return prefix(right, source, count - below) if found is None else found


def test_strided_and_neighbouring_positions_meet_every_source():
    """Without the shuffle inside groups every other position of two halves is the same source."""
    sources, _ = mixture([0.5, 0.25, 0.25]).locate(np.arange(64_000))
    for stride in (2, 4, 8, 16):
        for start in range(stride):
            share = np.bincount(sources[start::stride], minlength=3) / (64_000 / stride)
            assert np.abs(share - [0.5, 0.25, 0.25]).max() < 0.04
    other, _ = mixture([0.5, 0.25, 0.25], seed=1).locate(np.arange(64_000))
    assert 0.3 < (other == sources).mean() < 0.45  # chance is 0.375


def test_weights_are_the_shares_to_the_last_unit():
    mixed = Mixture({"a": 7, "b": 2, "c": 0, "d": 1}, 0)
    assert mixed.names == ["a", "b", "c", "d"]
    assert mixed.weights.sum() == 1 << 24
    assert np.abs(mixed.weights / (1 << 24) - [0.7, 0.2, 0, 0.1]).max() < 2**-24
    assert mixed.weights[2] == 0
    assert set(mixed.locate(np.arange(1000))[0].tolist()) == {0, 1, 3}


def test_temperature():
    sizes = {"a": 9_000_000_000, "b": 1_000_000_000, "c": 0}
    assert Mixture.temperature(sizes, 1) == pytest.approx({"a": 0.9, "b": 0.1, "c": 0})
    assert Mixture.temperature(sizes, 2) == pytest.approx({"a": 0.75, "b": 0.25, "c": 0})
    assert Mixture.temperature(sizes, math.inf) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0})
    for wrong in (0, -1, math.nan):
        with pytest.raises(ValueError, match="temperature is above 0"):
            Mixture.temperature(sizes, wrong)
    with pytest.raises(ValueError, match="'c' hold no samples"):
        Mixture.temperature({"c": 0}, 1)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"a": -0.1, "b": 1}, "share of source 'a' is -0.1"),
        ({"a": math.nan}, "share of source 'a' is nan"),
        ({"a": 0, "b": 0}, "shares of 'a', 'b' are all 0"),
        ({}, "all 0"),
        ({"a": 1, "b": 1e-9}, "share 1.0e-09 of source 'b' is below 6e-08"),
    ],
)
def test_refusals(shares, message):
    with pytest.raises(ValueError, match=message):
        Mixture(shares, 0)
