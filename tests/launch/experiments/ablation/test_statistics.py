"""Intervals and p-values against scipy, brute force and the textbook's sums of squares."""

import numpy as np
import pytest
from scipy import stats

from counterpoint.launch.experiments.ablation.statistics import (
    Spread,
    crossed_variance,
    difference_of_means,
    drawn_seeds,
    holm,
    paired_difference,
    pooled_spread,
    resampled_means,
)
from counterpoint.launch.experiments.ablation.student import quantile, two_sided_p


@pytest.mark.parametrize("dof", [1, 2, 2.7, 10, 1000])
def test_students_distribution_is_scipys(dof):
    for t in (0, 0.3, 2, -5, 30):
        expected = 2 * stats.t.sf(abs(t), dof)
        assert two_sided_p(t, dof) == pytest.approx(expected, rel=1e-8, abs=1e-12)
    assert quantile(0.95, dof) == pytest.approx(stats.t.ppf(0.975, dof), rel=1e-9)


def test_resampled_means_have_the_spread_of_the_mean():
    rng = np.random.default_rng(1)
    values, weights = rng.normal(0, 1, (2, 300)), rng.random(300) + 0.5
    drawn = resampled_means(values, weights, 4000, seed=5)
    assert drawn.shape == (4000, 2)
    # Linearised variance of a weighted mean.
    mean = np.average(values[0], weights=weights)
    expected = ((weights * (values[0] - mean)) ** 2).sum() / weights.sum() ** 2
    assert drawn[:, 0].mean() == pytest.approx(mean, abs=4 * (expected / 4000) ** 0.5)
    assert drawn[:, 0].var() == pytest.approx(expected, rel=0.1)
    assert np.array_equal(drawn, resampled_means(values, weights, 4000, seed=5))
    # Rows share the items of a draw: that of a sum is the sum of those of the parts.
    both = resampled_means(np.stack([*values, values.sum(0)]), weights, 50, seed=5)
    assert np.allclose(both[:, 0] + both[:, 1], both[:, 2])


def test_a_draw_of_seeds_has_the_variance_of_the_mean_over_seeds():
    scores = np.array([0.3, 0.5, 0.1])
    drawn = drawn_seeds(3, 40_000) @ scores
    assert drawn.mean() == pytest.approx(scores.mean(), abs=0.002)
    assert drawn.var() == pytest.approx(scores.var(ddof=1) / 3, rel=0.03)
    assert set(np.unique(drawn_seeds(3, 100))) == {0, 0.5, 1}  # two of three
    assert np.array_equal(drawn_seeds(1, 4), np.ones((4, 1)))


def test_the_variance_of_a_crossed_mean_is_that_of_the_mean_squares():
    """Two-way random model: Var = (MS_seeds + max(MS_items - MS_rest, 0)) / (seeds x items)."""
    rng = np.random.default_rng(2)
    x = rng.normal(0, 0.5, (3, 1)) + rng.normal(0, 0.3, (1, 40)) + rng.normal(0, 0.1, (3, 40))
    variance, dof = crossed_variance(x, np.ones(40))
    seeds = 40 * ((x.mean(1) - x.mean()) ** 2).sum() / 2
    items = 3 * ((x.mean(0) - x.mean()) ** 2).sum() / 39
    rest = ((x - x.mean(1, keepdims=True) - x.mean(0) + x.mean()) ** 2).sum() / 78
    assert variance == pytest.approx((seeds + items - rest) / 120)
    assert dof == pytest.approx(max(2, 2 * (variance / (seeds / 120)) ** 2))
    # Weights of 2 are items that come twice, but for the number of items.
    doubled, _ = crossed_variance(x, np.full(40, 2.0))
    assert doubled == pytest.approx(variance)


def test_pooled_spread_is_the_residual_of_an_analysis_of_variance():
    rng = np.random.default_rng(3)
    x = rng.random((5, 3))
    square = 0.0
    for i in range(5):
        for j in range(3):
            square += (x[i, j] - x[i].mean() - x[:, j].mean() + x.mean()) ** 2
    spread = pooled_spread(x)
    assert (spread.mean_square, spread.dof) == (pytest.approx(square / 8), 8)
    # Of two runs it is the spread of their differences: the paired t test.
    own = pooled_spread(x[:2])
    assert own.of_difference(3) == pytest.approx((x[0] - x[1]).var(ddof=1) / 3)
    assert pooled_spread(x[:1]) is None and pooled_spread(x[:, :1]) is None


def test_without_items_it_is_the_paired_t_test():
    rng = np.random.default_rng(4)
    ours, theirs = rng.random(4), rng.random(4)
    found = difference_of_means(ours, theirs)
    expected = stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.t == pytest.approx(tuple(expected.confidence_interval()))
    assert (found.own_t, found.own_p) == (found.t, found.p)
    pooled = difference_of_means(ours, theirs, Spread(0.02, 30))
    reach = stats.t.ppf(0.975, 30) * (2 * 0.02 / 4) ** 0.5
    assert pooled.t == pytest.approx((found.value - reach, found.value + reach))
    assert pooled.own_p == found.p
    assert difference_of_means(ours[:1], theirs[:1]).p is None


def compare(ours, theirs, num_draws=2000, pooled=None):
    weights = np.ones(ours.shape[1])
    drawn = resampled_means(np.concatenate([ours, theirs]), weights, num_draws)
    split = drawn[:, : len(ours)], drawn[:, len(ours) :]
    return paired_difference(ours, theirs, weights, *split, pooled)


def test_a_bootstrap_is_that_of_a_loop():
    rng = np.random.default_rng(5)
    ours, theirs = rng.random((3, 60)) < 0.6, rng.random((3, 60)) < 0.5
    found = compare(ours.astype(float), theirs.astype(float), 20_000)
    by_item = ours.astype(float) - theirs
    loop, over_items = [], []
    for _ in range(20_000):
        items = rng.integers(0, 60, 60)
        loop.append(by_item[rng.integers(0, 3, 2)][:, items].mean())
        over_items.append(by_item[:, items].mean())
    assert found.value == pytest.approx(by_item.mean())
    assert found.bootstrap == pytest.approx(tuple(np.quantile(loop, [0.025, 0.975])), abs=0.012)
    assert found.over_items == pytest.approx(
        tuple(np.quantile(over_items, [0.025, 0.975])), abs=0.012
    )
    tail = 2 * min((np.array(loop) <= 0).mean(), (np.array(loop) >= 0).mean())
    assert found.bootstrap_p == pytest.approx(tail, abs=0.02)
    assert (found.num_seeds, found.num_items) == (3, 60)


def test_one_seed_has_items_alone():
    rng = np.random.default_rng(6)
    ours, theirs = (rng.random((1, 200)) < 0.9) * 1.0, (rng.random((1, 200)) < 0.5) * 1.0
    found = compare(ours, theirs)
    assert found.t is None and found.own_t is None and found.dof is None
    assert found.p is None and found.bootstrap is None and found.bootstrap_p is None
    drawn = np.random.default_rng(7).choice((ours - theirs)[0], (20_000, 200)).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.over_items == pytest.approx((low, high), abs=0.012)


def test_a_bootstrap_is_never_certain():
    ours, theirs = np.ones((3, 50)), np.zeros((3, 50))
    assert compare(ours, theirs).bootstrap_p == pytest.approx(2 / 2001)


@pytest.mark.parametrize("between_seeds", [0.0, 0.02])
def test_an_error_rate_of_five_percent_is_kept(between_seeds):
    """Runs without any difference: seeds that differ much, or items that do."""
    rng, wrong, alike = np.random.default_rng(7), 0, 0
    for _ in range(200):
        shared = rng.normal(0, 0.3, 120)
        runs = shared + rng.normal(0, between_seeds, (6, 3, 1)) + rng.normal(0, 0.3, (6, 3, 120))
        pooled = pooled_spread(runs.mean(2))
        found = compare(runs[0], runs[1], 30, pooled)
        wrong += found.p < 0.05
        alike += found.own_p < 0.05
    # Three standard errors of a rate of 5% in 200.
    assert wrong / 200 < 0.05 + 3 * 0.016 and alike / 200 < 0.05 + 3 * 0.016
    assert wrong > 0


def test_holm_is_the_step_down_procedure():
    p = [0.01, 0.04, 0.03, None, 0.005]
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and never below the one before.
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, None, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
