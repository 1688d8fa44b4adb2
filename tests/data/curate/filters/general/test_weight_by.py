"""Weights are a column to scale, and the same in any order."""

import math

import numpy as np
import pytest
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.general.weight_by import WeightBy
from counterpoint.data.curate.numerics.fixed_point import total_of, value_sums
from counterpoint.data.curate.runner import Curation

RNG = np.random.default_rng(8)
VALUES = np.exp(6 * RNG.normal(size=400))
VALUES[::9] = 0


def weights(folder, shards=(400,), order=None, values=VALUES, **options):
    table = make_table(folder / "table", {"score": values.tolist()}, shards, order)
    Curation(table, {"w": WeightBy("score", **options)}, {}, folder / "out").run()
    found = kept(folder / "out")
    return np.array([found.get(row * 7919 - 10**6, 0.0) for row in range(400)])


def test_the_sum_is_exact_whatever_the_order():
    values = np.exp(20 * RNG.normal(size=5000))
    parts = [value_sums(part) for part in np.array_split(RNG.permutation(values), 37)]
    total = sum(part["sums"] for part in parts)
    np.testing.assert_array_equal(total, value_sums(values)["sums"])
    assert total_of(total) == pytest.approx(math.fsum(values), rel=1e-9)
    assert sum(int(part["rows"]) for part in parts) == 5000


def test_weights_have_the_mean_or_the_total(tmp_path):
    mean = weights(tmp_path / "a", mean=2.0)
    np.testing.assert_allclose(mean, 2.0 * VALUES / VALUES.mean(), rtol=1e-6)
    total = weights(tmp_path / "b", mean=None, total=50.0)
    np.testing.assert_allclose(total, 50.0 * VALUES / VALUES.sum(), rtol=1e-6)
    plain = weights(tmp_path / "c", mean=None)
    np.testing.assert_allclose(plain, VALUES, rtol=1e-6)
    limited = weights(tmp_path / "d", max=0.5)
    np.testing.assert_allclose(limited, np.minimum(VALUES / VALUES.mean(), 0.5), rtol=1e-6)


def test_nothing_depends_on_shards(tmp_path):
    one = weights(tmp_path / "a", [100] * 4)
    other = weights(tmp_path / "b", [1, 399], RNG.permutation(400))
    np.testing.assert_array_equal(one, other)


def test_what_is_no_weight_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        WeightBy("score", total=3.0)
    with pytest.raises(ValueError, match="max=0"):
        WeightBy("score", max=0)
    with pytest.raises(ValueError, match=r"has the value -1\.0, which is no weight"):
        weights(tmp_path / "a", values=np.where(np.arange(400) == 7, -1.0, 1.0))
    with pytest.raises(ValueError, match="all values of score are 0"):
        weights(tmp_path / "b", values=np.zeros(400))
