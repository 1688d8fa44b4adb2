"""Lists as sets of keys: each operation against plain dictionaries."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoint.data.curate import key_index
from counterpoint.data.curate.lists import keep_list
from counterpoint.data.curate.lists.algebra import combine, mix_lists
from counterpoint.data.curate.lists.keep_list import SCHEMA, WEIGHTED

N = 300


def write(path, weights, move=0):
    """Writes a list of samples by number, with weights unless they are all None."""
    numbers = list(weights)
    rows = {
        "source": ["web"] * len(numbers),
        "shard": [f"{n // 50 + move:05d}.tar" for n in numbers],
        "index": [n % 50 for n in numbers],
        "key": [(n - 150) * 2**50 + 7 for n in numbers],
    }
    weighted = any(w is not None for w in weights.values())
    if weighted:
        rows["weight"] = list(weights.values())
    schema = WEIGHTED if weighted else SCHEMA
    pq.write_table(pa.table(rows).cast(schema), path, row_group_size=37)
    return path


def read(path):
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        number = (row["key"] - 7) // 2**50 + 150
        assert (row["shard"], row["index"]) == (f"{number // 50:05d}.tar", number % 50)
    weights = {(row["key"] - 7) // 2**50 + 150: row.get("weight") for row in rows}
    assert len(weights) == len(rows)
    return weights


@pytest.fixture(params=[1 << 18, 11])
def lists(tmp_path, request, monkeypatch):
    monkeypatch.setattr(keep_list, "ROWS_A_BATCH", request.param)
    monkeypatch.setattr(key_index, "KEYS_A_BUCKET", request.param)
    rng = np.random.default_rng(0)
    picks = [sorted(rng.choice(N, size, replace=False).tolist()) for size in (120, 90, 200)]
    contents = [
        dict.fromkeys(picks[0]),
        {n: float(w) for n, w in zip(picks[1], rng.integers(1, 9, 90) / 4, strict=True)},
        {n: float(w) for n, w in zip(picks[2], rng.integers(1, 9, 200) / 4, strict=True)},
    ]
    return [write(tmp_path / f"{i}.parquet", c) for i, c in enumerate(contents)], contents


def weight(content, number):
    value = content[number]
    return 1.0 if value is None else value


def test_sets(lists, tmp_path):
    paths, (a, b, c) = lists
    out = tmp_path / "out" / "list.parquet"
    every = {
        n: max(weight(x, n) for x in (a, b, c) if n in x) for n in a.keys() | b.keys() | c.keys()
    }
    assert combine("union", paths, out) == len(every)
    assert read(out) == every
    both = {n: min(weight(b, n), weight(c, n)) for n in b.keys() & c.keys()}
    assert combine("intersect", paths[1:], out) == len(both)
    assert read(out) == both
    combine("minus", [paths[2], paths[0], paths[1]], out)
    assert read(out) == {n: w for n, w in c.items() if n not in a and n not in b}
    combine("minus", [paths[0], paths[1]], out)
    assert read(out) == {n: None for n in a if n not in b}
    assert [path.name for path in out.parent.iterdir()] == ["list.parquet"]


def test_mixtures_give_each_list_its_share(lists, tmp_path):
    paths, contents = lists
    out = tmp_path / "mix.parquet"
    shares = np.array([3.0, 1.0, 1.0])
    for samples in (None, 5000):
        mix_lists(dict(zip(paths, shares, strict=True)), out, samples)
        found = read(out)
        keys = set().union(*contents)
        total = samples or len(keys)
        expected = dict.fromkeys(keys, 0.0)
        for content, share in zip(contents, shares / 5, strict=True):
            whole = sum(weight(content, n) for n in content)
            for n in content:
                expected[n] += total * share * weight(content, n) / whole
        assert found.keys() == expected.keys()
        np.testing.assert_allclose([found[n] for n in keys], [expected[n] for n in keys], rtol=1e-6)
        assert sum(found.values()) == pytest.approx(total, rel=1e-6)


def test_mistakes_are_named(lists, tmp_path):
    paths, (a, b, _) = lists
    out = tmp_path / "out.parquet"
    moved = write(tmp_path / "moved.parquet", a, move=1)
    with pytest.raises(
        ValueError, match=r"120 of the 120 samples .* different shards.*keep locate"
    ):
        combine("union", [paths[0], moved], out)
    combine("intersect", [paths[0], moved], out)
    assert read(out) == a
    with pytest.raises(ValueError, match="no sample is left"):
        combine("minus", [paths[0], moved], tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(paths[0], columns=["shard", "index"]), bare)
    with pytest.raises(ValueError, match="has no column source, key"):
        combine("union", [paths[0], bare], out)
    (tmp_path / "text").write_text("x")
    with pytest.raises(ValueError, match="is no keep-list"):
        combine("union", [paths[0], tmp_path / "text"], out)
    with pytest.raises(ValueError, match="shares above 0"):
        mix_lists({paths[0]: 0.0, paths[1]: 1.0}, out)
    zero = write(tmp_path / "zero.parquet", dict.fromkeys(b, 0.0))
    with pytest.raises(ValueError, match=r"zero\.parquet' sum to 0"):
        mix_lists({paths[0]: 1.0, zero: 1.0}, out)


def test_numbers_that_are_none_are_refused(lists, tmp_path):
    (plain, weighted, _), contents = lists
    out = tmp_path / "out.parquet"
    for share in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match="shares above 0"):
            mix_lists({plain: share, weighted: 1.0}, out)
    for weight in (float("nan"), float("inf"), -1.0):
        wrong = write(tmp_path / "wrong.parquet", dict.fromkeys(contents[1], 1.0) | {N - 1: weight})
        with pytest.raises(ValueError, match=f"has the weight {weight:g}; weights are numbers"):
            combine("union", [plain, wrong], out)
        with pytest.raises(ValueError, match=f"has the weight {weight:g}; weights are numbers"):
            mix_lists({plain: 1.0, wrong: 1.0}, out)
    assert not out.exists()
