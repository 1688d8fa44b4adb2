"""Random subsets have their size, are nested, and do not depend on anything but keys."""

import numpy as np
import pytest
from helpers.filter_run import batch_of, run_filter
from helpers.score_table import make_table

from counterpoint.data.curate.filters.general.basic import Basic
from counterpoint.data.curate.filters.general.random_subset import RandomSubset
from counterpoint.data.curate.runner import Curation

N = 20_000
ROWS = batch_of({"row": np.arange(N)})


def keep(*, rows=ROWS, pieces=1, **settings):
    return np.array(run_filter(RandomSubset(**settings), rows, pieces)["keep"])


def test_a_fraction_is_one():
    # Five standard deviations of a binomial.
    for fraction in (0.01, 0.3, 0.9):
        spread = 5 * np.sqrt(N * fraction * (1 - fraction))
        assert abs(keep(fraction=fraction).sum() - fraction * N) < spread
    assert keep(fraction=1.0).all()


@pytest.mark.parametrize("samples", [1, 137, 9999, N])
def test_a_number_is_one(samples):
    found = keep(samples=samples)
    assert samples <= found.sum() <= samples + 1
    np.testing.assert_array_equal(found, keep(samples=samples, pieces=9))


def test_smaller_ones_lie_within_larger_ones_and_seeds_differ():
    small, large = keep(fraction=0.2), keep(fraction=0.5)
    assert (small <= large).all() and (keep(samples=500) <= small).all()
    other = keep(fraction=0.2, seed=1)
    # Independent draws overlap in 0.2 * 0.2 of the rows.
    assert abs((small & other).sum() - 0.04 * N) < 5 * np.sqrt(0.04 * N)


def test_rows_are_told_apart_by_their_keys_alone():
    order = np.random.default_rng(0).permutation(N)
    shuffled = batch_of({"row": order}, keys=ROWS["key"].to_numpy()[order])
    np.testing.assert_array_equal(keep(rows=shuffled, fraction=0.3), keep(fraction=0.3)[order])


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="give one of them, and null for the others"):
        RandomSubset()
    with pytest.raises(ValueError, match="give one of them, and null for the others"):
        RandomSubset(0.1, 10)
    with pytest.raises(ValueError, match=r"fraction=1\.5 is not"):
        RandomSubset(1.5)
    with pytest.raises(ValueError, match=r"pool_fraction=0 is not"):
        RandomSubset(pool_fraction=0)
    with pytest.raises(ValueError, match="samples=0 keeps none"):
        RandomSubset(samples=0)
    with pytest.raises(ValueError, match="20,000 samples reach it, fewer than samples=20,001"):
        keep(samples=N + 1)


def test_a_part_of_the_pool_is_one_whatever_is_left_of_it(tmp_path):
    words = [n % 5 for n in range(1000)]
    table = make_table(tmp_path / "table", {"words": words}, [600, 400])
    filters = {"long": Basic(1, min_words=2, min_characters=0), "half": RandomSubset(1.0)}
    for part, samples in ((0.5, 500), (0.6, 600), (0.001, 1), (1e-9, 1)):
        filters["half"] = RandomSubset(pool_fraction=part)
        summary = Curation(table, filters, {}, tmp_path / "out").run()
        assert [each["seen"] for each in summary["filters"]] == [1000, 600]
        assert samples <= summary["kept"] <= samples + 1
    filters["half"] = RandomSubset(pool_fraction=0.61)
    with pytest.raises(
        ValueError, match=r"600 samples reach it, fewer than samples=610 .or that p"
    ):
        Curation(table, filters, {}, tmp_path / "out").run()
