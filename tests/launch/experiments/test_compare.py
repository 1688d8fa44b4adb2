"""Intervals and paired differences of evaluations."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, ttest_rel

from counterpoint.launch.experiments.compare import baseline_outcomes, compare, intervals
from counterpoint.train.evaluation.outcomes import Outcomes, Stored, write_outcomes

KEYS = [f"k{i}" for i in range(400)]


def stored(values, items="same", weights=None):
    values = np.asarray(values, dtype=float)
    return Stored(values, np.ones(len(values)) if weights is None else weights, items)


def test_an_interval_is_the_bootstraps():
    rng = np.random.default_rng(0)
    values = (rng.random(400) < 0.3).astype(float)
    low, high = intervals({"s/t/top1": stored(values)})["s/t/top1"]
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    assert (low, high) == pytest.approx(theirs.confidence_interval, abs=0.005)
    half = norm.ppf(0.975) * values.std() / 20
    assert high - low == pytest.approx(2 * half, rel=0.05)


def test_weights_count():
    values, weights = np.r_[np.ones(50), np.zeros(50)], np.r_[np.full(50, 3.0), np.ones(50)]
    low, high = intervals({"m": stored(values, weights=weights)})["m"]
    assert low < 0.75 < high and high - low < 0.25


def test_what_cannot_be_resampled_has_no_interval():
    assert intervals({"one": stored([1.0]), "bad": stored([np.nan, 1.0])}) == {}


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=400)  # items differ far more than models do
    ours, theirs = hard + 0.08 + rng.normal(0, 0.5, 400), hard + rng.normal(0, 0.5, 400)
    found = compare({"m": stored(ours)}, {"m": stored(theirs)})["m"]
    test = ttest_rel(ours, theirs)
    assert found.difference == pytest.approx((ours - theirs).mean())
    expected = test.confidence_interval()
    assert found.interval == pytest.approx((expected.low, expected.high), abs=0.01)
    assert found.p == pytest.approx(test.pvalue, abs=0.02)
    assert intervals({"m": stored(ours)})["m"][0] < theirs.mean()  # unpaired, they would overlap


def test_p_is_corrected_for_the_number_of_measures():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 300))
    one = compare({"m": stored(ours)}, {"m": stored(theirs)})["m"]
    many = {f"m{i}": stored(ours) for i in range(3)}
    both = compare(many, {f"m{i}": stored(theirs) for i in range(3)})
    assert both["m0"].p == pytest.approx(min(1, 3 * one.p)) and one.p < 1


def test_other_items_are_not_compared():
    ours = {"m": stored([1, 0, 1]), "n": stored([1, 0, 1])}
    assert set(compare(ours, {"m": stored([1, 1, 1], "others"), "n": stored([1, 1, 0])})) == {"n"}


def test_the_newest_outcomes_on_the_suite_are_the_baseline(tmp_path):
    def write(path, name):
        write_outcomes(path, {f"{name}/t/top1": Outcomes(0.5, np.array([0, 1]), ["a", "b"])})

    (tmp_path / "evaluation").mkdir()
    write(tmp_path / "outcomes.npz", "s")
    assert baseline_outcomes(tmp_path, "s")[0].name == "outcomes.npz"
    for step in (10, 20):
        write(tmp_path / f"evaluation/s-{step:08d}.npz", "s")
    write(tmp_path / "evaluation/z-00000030.npz", "z")
    path, found = baseline_outcomes(tmp_path, "s")
    assert path.name == "s-00000020.npz" and found["s/t/top1"].values.tolist() == [0, 1]
    assert baseline_outcomes(path, "s")[0] == path
    with pytest.raises(ValueError, match=r"evaluate it first, with counterpoint evaluate .* mine"):
        baseline_outcomes(tmp_path, "mine")
    (tmp_path / "broken.npz").write_bytes(b"no")
    with pytest.raises(ValueError, match="holds no outcomes"):
        baseline_outcomes(tmp_path / "broken.npz", "s")
