"""MetaCLIP's probabilities by hand, draws against their expectation, thresholds by language."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.filter_run import batch_of, run_filter, state_of
from helpers.score_table import kept, make_table

from counterpoint.data.curate.filters.concepts.balance_concepts import BalanceConcepts, share_of
from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts
from counterpoint.data.curate.runner import Curation

RNG = np.random.default_rng(7)
E = 40
POPULARITY = 1 / np.arange(1, E + 1)
MATCHES = [
    np.flatnonzero(RNG.random(E) < POPULARITY * RNG.choice([0.0, 0.5, 1.0])).tolist()
    for _ in range(4000)
]
ROWS = batch_of({"concepts": pa.array(MATCHES, pa.list_(pa.int32()))})


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("\n".join(f"e{number}" for number in range(E)))
    return path


def expected(t):
    """(count, p) of each entry and 1 - prod(1 - p) of each row, in plain Python."""
    counts = [0] * E
    for row in MATCHES:
        for entry in row:
            counts[entry] += 1
    p = [min(1.0, t / count) if count else 1.0 for count in counts]
    rows = []
    for row in MATCHES:
        missed = 1.0
        for entry in row:
            missed *= 1 - p[entry]
        rows.append(1 - missed)
    return counts, p, rows


@pytest.mark.parametrize("pieces", [1, 11])
def test_weights_are_the_formula(entries, pieces):
    each = BalanceConcepts(entries, t=120, result="weight")
    found = run_filter(each, ROWS, pieces, seed=pieces)
    counts, p, rows = expected(120)
    np.testing.assert_allclose(found["weight"], rows, rtol=1e-12)
    assert found["probability"] == found["weight"]
    table = each.table(state_of(each, ROWS, pieces)).to_pydict()
    assert table["entry"] == [f"e{number}" for number in range(E)]
    assert table["count"] == counts and set(table["language"]) == {""}
    np.testing.assert_allclose(table["probability"], p)


def test_draws_keep_what_the_formula_says(entries):
    """The kept number of rows and of each entry lie within five deviations of their means."""
    _, _, rows = expected(120)
    for seed in range(3):
        found = run_filter(BalanceConcepts(entries, t=120, seed=seed), ROWS, pieces=3)
        keep, p = np.array(found["keep"]), np.array(rows)
        np.testing.assert_allclose(found["probability"], p, rtol=1e-12)
        assert not keep[p == 0].any() and keep[p == 1].all()
        for entry in range(E):
            those = np.array([entry in row for row in MATCHES])
            spread = 5 * np.sqrt((p * (1 - p))[those].sum()) + 1e-9
            assert abs(keep[those].sum() - p[those].sum()) < spread
    # The same key is drawn alike, another seed draws others.
    one = np.array(run_filter(BalanceConcepts(entries, t=120), ROWS)["keep"])
    assert (one != keep).sum() > 100


def test_entries_are_drawn_one_by_one(entries):
    """Rows with one key and more entries are kept whenever one of these alone keeps them."""
    pairs = pa.array([[0], [1], [0, 1]] * 500, pa.list_(pa.int32()))
    keys = np.repeat(np.arange(500), 3)
    rows = batch_of({"concepts": pairs}, keys)
    keep = np.array(run_filter(BalanceConcepts(entries, t=300), rows)["keep"]).reshape(500, 3)
    np.testing.assert_array_equal(keep[:, 2], keep[:, 0] | keep[:, 1])
    assert 50 < keep[:, 0].sum() < 250 and (keep[:, 0] != keep[:, 1]).sum() > 50


def test_other_languages_get_the_tail_share_of_english(tmp_path):
    files = {}
    for code, size in {"de": 30, "en": E}.items():
        files[code] = tmp_path / f"{code}.txt"
        files[code].write_text("\n".join(f"{code}{number}" for number in range(size)))
    german = [np.flatnonzero(RNG.random(30) < 0.5 * POPULARITY[:30]).tolist() for _ in range(1500)]
    lists = german + [[number + 30 for number in row] for row in MATCHES]
    rows = batch_of({"concepts": pa.array(lists, pa.list_(pa.int32()))})
    each = BalanceConcepts(files, t=120, result="weight")
    table = each.table(state_of(each, rows, 5)).to_pydict()
    counts, p, _ = expected(120)
    assert table["language"] == ["de"] * 30 + ["en"] * E
    np.testing.assert_allclose(table["probability"][30:], p)
    share = sum(c for c in counts if c < 120) / sum(counts)
    own = sorted(sum(number in row for row in german) for number in range(30))
    portions = [sum(own[: k + 1]) / sum(own) for k in range(30)]
    t = own[min(range(30), key=lambda k: abs(portions[k] - share))]
    assert 1 < t < max(own)
    np.testing.assert_allclose(
        table["probability"][:30], [min(1, t / max(c, 1)) for c in table["count"][:30]]
    )


def test_the_tail_are_entries_below_t():
    assert share_of(np.array([2, 3, 5]), 3) == 0.2


def test_a_tail_share_instead_of_t(entries):
    each = BalanceConcepts(entries, tail_share=0.3, result="weight")
    table = each.table(state_of(each, ROWS)).to_pydict()
    counts, _, _ = expected(1)
    ordered = sorted(counts)
    portions = [sum(ordered[: k + 1]) / sum(ordered) for k in range(E)]
    t = ordered[min(range(E), key=lambda k: abs(portions[k] - 0.3))]
    np.testing.assert_allclose(table["probability"], [min(1, t / max(c, 1)) for c in counts])


@pytest.mark.parametrize("shards", [[300], [1, 99, 200], [60] * 5])
def test_lists_pass_from_one_filter_to_the_next(tmp_path, shards, entries):
    """The whole way, through files: matching, balancing, the table of entries."""
    captions = [" ".join(f"e{number}" for number in row) or "none" for row in MATCHES[:300]]
    order = np.random.default_rng(len(shards)).permutation(300)
    table = make_table(tmp_path / "table", {"caption": captions}, shards, order)
    filters = {"match": MatchConcepts(entries), "balance": BalanceConcepts(entries, t=10)}
    summary = Curation(table, filters, {}, tmp_path / "out").run()
    rows = batch_of({"concepts": pa.array(MATCHES[:300], pa.list_(pa.int32()))})
    matched = rows.filter(pa.array([bool(row) for row in MATCHES[:300]]))
    keep = run_filter(filters["balance"], matched)["keep"]
    wanted = {key for key, kept in zip(matched["key"].to_pylist(), keep, strict=True) if kept}
    assert set(kept(tmp_path / "out")) == wanted and 20 < len(wanted) < 280
    assert summary["filters"][0]["left_out"] == sum(not row for row in MATCHES[:300])
    counts = pq.read_table(tmp_path / "out/tables/balance.parquet")["count"].to_pylist()
    assert counts == [sum(number in row for row in MATCHES[:300]) for number in range(E)]


def test_settings_that_cannot_be_are_refused(entries):
    with pytest.raises(ValueError, match="takes t or tail_share"):
        BalanceConcepts(entries)
    with pytest.raises(ValueError, match="t=0 is below 1"):
        BalanceConcepts(entries, t=0)
    with pytest.raises(ValueError, match=r"tail_share=2\.0 is not"):
        BalanceConcepts(entries, tail_share=2.0)
    with pytest.raises(ValueError, match="language 'en', which has no entries"):
        BalanceConcepts({"de": entries}, t=5)
