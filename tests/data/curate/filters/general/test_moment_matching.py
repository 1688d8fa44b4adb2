"""M4's weights are the solution of the quadratic program, whatever the order of rows."""

import numpy as np
import pytest
from helpers.score_table import kept, make_table
from scipy.optimize import LinearConstraint, minimize

from counterpoint.data.curate.filters.general.moment_matching import MomentMatching
from counterpoint.data.curate.runner import Curation

RNG = np.random.default_rng(6)
N = 120
WOMAN = RNG.random(N) < 0.35
OLD = RNG.random(N)  # a probability, not a choice
NURSE = RNG.random(N) < np.where(WOMAN, 0.5, 0.3)
DOCTOR = RNG.random(N) < np.where(WOMAN, 0.15, 0.4)
COLUMNS = {"woman": WOMAN, "old": OLD, "nurse": NURSE, "doctor": DOCTOR}
SHARES, LABELS = {"woman": 0.5, "old": 0.45}, ["nurse", "doctor"]


def weights(folder, shards=(N,), order=None, columns=COLUMNS, count=N, **options):
    table = make_table(folder / "table", {n: c.tolist() for n, c in columns.items()}, shards, order)
    each = MomentMatching(**{"attributes": SHARES, "labels": LABELS} | options)
    Curation(table, {"m4": each}, {}, folder / "out").run()
    found = kept(folder / "out")
    return np.array([found.get(row * 7919 - 10**6, 0.0) for row in range(count)])


def moments():
    differ = [COLUMNS[name] - share for name, share in SHARES.items()]
    return np.array(differ + [d * COLUMNS[label] for label in LABELS for d in differ])


def by_program(mean, highest, eps_r, eps_d):
    """The same weights by a general solver over all of them at once."""
    limits = np.array([eps_r] * 2 + [eps_d] * 4)
    constraints = [
        LinearConstraint(moments() / N, -limits, limits),
        LinearConstraint(np.ones((1, N)) / N, mean, mean),
    ]
    solution = minimize(
        lambda q: ((q - mean) ** 2).sum() / 2,
        np.full(N, mean),
        jac=lambda q: q - mean,
        bounds=[(0, highest)] * N,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 2000},
    )
    assert solution.success
    return solution.x


@pytest.mark.parametrize(
    ("mean", "highest", "eps_r", "eps_d"),
    [(0.5, 1.0, 0.01, 0.01), (1.0, 2.5, 0.0, 0.0), (0.5, 0.8, 0.02, 0.03)],
)
def test_weights_solve_the_program(tmp_path, mean, highest, eps_r, eps_d):
    options = {"mean": mean, "max_weight": highest, "eps_r": eps_r, "eps_d": eps_d}
    found = weights(tmp_path, **options)
    expected = by_program(**{"highest" if n == "max_weight" else n: v for n, v in options.items()})
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.mean() == pytest.approx(mean, abs=1e-5)
    missed = np.abs(moments() @ found) / N - np.array([eps_r] * 2 + [eps_d] * 4)
    assert missed.max() < 1e-5
    # Else nothing would have been asked of it.
    assert np.abs(moments().mean(1)).max() > 0.05


def test_where_nothing_is_wrong_all_weights_are_equal(tmp_path):
    found = weights(tmp_path, eps_r=0.9, eps_d=0.9)
    np.testing.assert_array_equal(found, 0.5)


MANY = 6000
WIDE = {
    "woman": np.random.default_rng(1).random(MANY) < 0.2,
    "nurse": np.random.default_rng(2).random(MANY) < 0.3,
}


def run_many(folder, shards, order=None):
    options = {"attributes": {"woman": 0.5}, "labels": ["nurse"], "rows": 1500, "mean": 0.3}
    return weights(folder, shards, order, WIDE, MANY, **options)


def test_what_is_solved_on_some_rows_holds_for_all(tmp_path):
    found = run_many(tmp_path, [2000] * 3)
    differ = WIDE["woman"] - 0.5
    assert abs((found * differ).mean()) < 0.01 + 0.02
    assert abs((found * differ * WIDE["nurse"]).mean()) < 0.01 + 0.02
    assert abs((0.3 * differ).mean()) > 0.08


def test_nothing_depends_on_shards(tmp_path):
    one = run_many(tmp_path / "a", [1000] * 6)
    other = run_many(tmp_path / "b", [1, 4999, 1000], RNG.permutation(MANY))
    np.testing.assert_array_equal(one, other)


def test_the_order_in_which_products_are_summed_up_changes_nothing():
    draw = np.random.default_rng(5)
    attribute, labels = draw.random(3001) < 0.3, draw.random((3001, 7)) < 0.2
    rows = (attribute - 0.5)[:, None] * np.concatenate([np.ones((3001, 1)), labels], axis=1)
    each = MomentMatching({"a": 0.5}, [f"y{n}" for n in range(7)], eps_r=0.001, eps_d=0.001)
    # As other numbers of threads do.
    for order in (slice(None, None, -1), draw.permutation(3001)):
        np.testing.assert_array_equal(each.solve(rows[order]), each.solve(rows))


def test_parts_may_be_merged_in_any_order():
    each = MomentMatching({"a": 0.5}, rows=50)
    draw = np.random.default_rng(0)
    parts = [
        {"random": draw.integers(0, 90, 40), "moments": draw.random((40, 3))} for _ in range(5)
    ]
    merged = []
    for order in (range(5), range(4, -1, -1)):
        total = each._lowest(parts[order[0]])
        for number in order[1:]:
            total = each.merge(total, each._lowest(parts[number]))
        merged.append(total)
    np.testing.assert_array_equal(merged[0]["moments"], merged[1]["moments"])
    assert len(merged[0]["random"]) == 50


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no weights from 0 to"):
        weights(tmp_path, mean=0.9, eps_r=0.0)
    with pytest.raises(ValueError, match="give 0 to 1"):
        MomentMatching({"a": 50.0})
    with pytest.raises(ValueError, match="below max_weight"):
        MomentMatching({"a": 0.5}, mean=1.0)
    with pytest.raises(ValueError, match="0 or more"):
        MomentMatching({"a": 0.5}, eps_d=-0.1)
    with pytest.raises(ValueError, match="attributes is empty"):
        MomentMatching({})
