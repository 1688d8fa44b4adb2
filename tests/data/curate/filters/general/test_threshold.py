"""A streaming quantile against sorting, and limits against comparison."""

import numpy as np
import pytest
from helpers.filter_run import batch_of, run_filter, state_of

from counterpoint.data.curate.filters.general.threshold import Threshold

RNG = np.random.default_rng(3)
N = 5000
SCORES = {
    "cosines": RNG.normal(0.25, 0.05, N).astype(np.float32),
    "both signs": RNG.normal(0, 1e-3, N),
    "many scales": np.exp(RNG.normal(0, 20, N)) * RNG.choice([-1, 1], N),
    "words": RNG.integers(0, 20, N),
}


@pytest.mark.parametrize("best", ["highest", "lowest"])
@pytest.mark.parametrize("fraction", [0.001, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("name", ["cosines", "both signs", "many scales"])
def test_the_best_fraction_stays(name, fraction, best):
    scores = SCORES[name]
    rows = batch_of({"score": scores})
    keep = np.array(run_filter(Threshold("score", fraction, best=best), rows)["keep"])
    order = np.argsort(-scores if best == "highest" else scores, kind="stable")
    wanted = round(fraction * N)
    # All clearly beyond the quantile stay, none clearly below: a bin is 2^-15 of a number wide.
    at = float(scores[order[wanted - 1]])
    better = scores > at if best == "highest" else scores < at
    clear = np.abs(scores - at) > abs(at) * 2.0**-15
    np.testing.assert_array_equal(keep[clear], better[clear])
    assert abs(keep.sum() - wanted) <= (~clear).sum()


@pytest.mark.parametrize("pieces", [2, 17])
@pytest.mark.parametrize("name", SCORES)
def test_nothing_depends_on_how_rows_are_cut(name, pieces):
    rows = batch_of({"score": SCORES[name]})
    each = Threshold("score", 0.37)
    assert run_filter(each, rows) == run_filter(each, rows, pieces, seed=pieces)


def test_ties_are_drawn_by_key_and_seed():
    scores = np.where(np.arange(N) < 1000, 5, 3)
    rows = batch_of({"score": scores})
    keep = np.array(run_filter(Threshold("score", 0.4), rows)["keep"])
    assert keep[:1000].all()
    # 1,000 of 4,000 are wanted of the tie; five standard deviations of a binomial are 137.
    assert abs(keep[1000:].sum() - 1000) < 137
    other = np.array(run_filter(Threshold("score", 0.4, seed=1), rows)["keep"])
    assert (keep != other)[1000:].sum() > 500
    larger = np.array(run_filter(Threshold("score", 0.6), rows)["keep"])
    assert (keep <= larger).all()


def test_limits_are_those_written():
    rows = batch_of({"score": [0.1, 0.2, float("nan"), 0.3, 0.4]})
    assert run_filter(Threshold("score", min=0.2), rows)["keep"] == [False, True, False, True, True]
    assert run_filter(Threshold("score", max=0.3), rows)["keep"] == [True, True, False, True, False]
    both = run_filter(Threshold("score", min=0.2, max=0.2), rows)["keep"]
    assert both == [False, True, False, False, False]


def test_what_is_no_number_is_left_out():
    scores = np.where(np.arange(N) % 2, SCORES["cosines"], np.nan)
    keep = np.array(run_filter(Threshold("score", 1.0), batch_of({"score": scores}))["keep"])
    np.testing.assert_array_equal(keep, np.arange(N) % 2 == 1)
    nothing = batch_of({"score": [float("nan")] * 3})
    assert run_filter(Threshold("score", 0.5), nothing)["keep"] == [False] * 3


@pytest.mark.parametrize("name", SCORES)
def test_the_table_has_the_quantiles(name):
    each = Threshold("score", 0.5)
    table = each.table(state_of(each, batch_of({"score": SCORES[name]}), 5))
    assert table is not None
    table = table.to_pydict()
    ordered = np.sort(SCORES[name].astype(np.float64))
    assert table["quantile"][37] == pytest.approx(0.37) and len(table["value"]) == 101
    places = np.ceil(np.array(table["quantile"]) * N).clip(1).astype(int) - 1
    np.testing.assert_allclose(table["value"], ordered[places], rtol=2**-15)


def test_the_counts_stay_small():
    each = Threshold("score", 0.5)
    scores = np.random.default_rng(0).uniform(0.1, 0.4, 300_000)
    assert len(each.partial(batch_of({"score": scores}))["values"]) < 70_000


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="give fraction, or min and max"):
        Threshold("score")
    with pytest.raises(ValueError, match=r"fraction=0\.5, min=0\.1, .* write null"):
        Threshold("score", 0.5, min=0.1)
    with pytest.raises(ValueError, match="fraction=30 is not above 0"):
        Threshold("score", 30)
    with pytest.raises(ValueError, match="min=2 is above max=1"):
        Threshold("score", min=2, max=1)
