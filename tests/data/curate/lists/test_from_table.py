"""Lists for other shards, random lists, and DataComp's arrays, both ways."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.score_table import make_table

from counterpoint.data.curate.lists import datacomp, from_table
from counterpoint.data.curate.lists.algebra import combine
from counterpoint.data.curate.table import Table

N = 200
UIDS = [hashlib.md5(str(number).encode()).hexdigest() for number in range(N)]
# Two with the same upper half.
UIDS[7] = UIDS[6][:16] + "0" * 16


@pytest.fixture
def tables(tmp_path):
    columns = {"json:uid": UIDS, "error": ["bad_image" if n % 10 == 4 else None for n in range(N)]}
    old = make_table(tmp_path / "old", columns, [90, 110])
    order = np.random.default_rng(3).permutation(N)
    return old, make_table(tmp_path / "new", columns, [1, 140, 59], order)


def keys(path):
    return set(pq.read_table(path)["key"].to_pylist())


def places(table):
    rows = [row for path in table.files for row in pq.read_table(path).to_pylist()]
    return {row["key"]: (row["source"], row["shard"], row["index"]) for row in rows}


def test_random_lists_are_nested_and_survive_resharding(tables, tmp_path):
    old, new = tables
    drawn = {}
    for samples in (1, 30, 31, 180):
        path = tmp_path / f"{samples}.parquet"
        assert from_table.draw(old, samples, 0, path) == samples
        from_table.draw(new, samples, 0, tmp_path / "again.parquet")
        drawn[samples] = keys(path)
        assert len(drawn[samples]) == samples
        assert keys(tmp_path / "again.parquet") == drawn[samples]
    assert drawn[1] < drawn[30] < drawn[31] < drawn[180]
    usable = {n * 7919 - 10**6 for n in range(N) if n % 10 != 4}
    assert drawn[180] == usable
    from_table.draw(old, 30, 1, tmp_path / "other.parquet")
    assert 0 < len(keys(tmp_path / "other.parquet") & drawn[30]) < 15
    for samples in (0, 181):
        with pytest.raises(ValueError, match="the table has 180 usable samples"):
            from_table.draw(old, samples, 0, tmp_path / "out.parquet")


def test_a_list_moves_to_other_shards(tables, tmp_path):
    old, new = tables
    path, moved = tmp_path / "list.parquet", tmp_path / "moved.parquet"
    from_table.draw(old, 50, 0, path)
    assert from_table.locate(path, new, moved) == (50, 50)
    where = places(new)
    rows = pq.read_table(moved).to_pylist()
    assert {row["key"] for row in rows} == keys(path)
    for row in rows:
        assert (row["source"], row["shard"], row["index"]) == where[row["key"]]
    few = make_table(tmp_path / "few", {"json:uid": UIDS[:20]}, [20])
    kept, total = from_table.locate(path, few, moved)
    assert total == 50 and kept == len(keys(moved)) == len(keys(path) & places(few).keys())


def test_datacomps_arrays_go_both_ways(tables, tmp_path):
    old, new = tables
    path, npy, back = tmp_path / "list.parquet", tmp_path / "subset.npy", tmp_path / "back.parquet"
    from_table.draw(old, 150, 0, path)
    assert datacomp.write_subset(path, new, "json:uid", npy) == 150
    array = np.load(npy)
    assert array.dtype == np.dtype("u8,u8")
    uids = {
        row["key"]: UIDS[(row["key"] + 10**6) // 7919] for row in pq.read_table(path).to_pylist()
    }
    halves = sorted(divmod(int(uid, 16), 2**64) for uid in uids.values())
    assert [tuple(map(int, entry)) for entry in array] == halves
    assert datacomp.read_subset(npy, new, "json:uid", back) == (150, 150, 150)
    assert "weight" not in pq.read_schema(back).names
    assert keys(back) == keys(path)


def test_weights_are_repetitions(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(datacomp, "ROWS_AT_ONCE", 7)
    old, _ = tables
    entries = [6, 7, 7, 7, 30, 31, 31]
    array = np.array([divmod(int(UIDS[n], 16), 2**64) for n in entries], dtype="u8,u8")
    array.sort()
    np.save(tmp_path / "in.npy", array)
    wanted = [tmp_path / "in.npy", old, "json:uid", tmp_path / "l.parquet"]
    assert datacomp.read_subset(*wanted) == (4, 7, 7)
    rows = pq.read_table(tmp_path / "l.parquet").to_pylist()
    weights = {(row["key"] + 10**6) // 7919: row["weight"] for row in rows}
    assert weights == {6: 1.0, 7: 3.0, 30: 1.0, 31: 2.0}
    datacomp.write_subset(tmp_path / "l.parquet", old, "json:uid", tmp_path / "out.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), array)


def test_mistakes_are_named(tables, tmp_path):
    old, _ = tables
    path, out = tmp_path / "list.parquet", tmp_path / "out"
    from_table.draw(old, 150, 0, path)
    with pytest.raises(ValueError, match="has no column json:id; counterpoint score --field"):
        datacomp.write_subset(path, old, "json:id", out)
    with pytest.raises(ValueError, match="which is no hexadecimal number of 128 bits"):
        datacomp.write_subset(path, old, "caption", out)
    few = make_table(tmp_path / "few", {"json:uid": UIDS[:20]}, [20])
    with pytest.raises(ValueError, match=r"of the 150 samples .* are not in the score table"):
        datacomp.write_subset(path, few, "json:uid", out)
    holes = make_table(tmp_path / "holes", {"json:uid": [*UIDS[:-20], *[None] * 20]}, [N])
    with pytest.raises(ValueError, match=r"samples of .* have no json:uid"):
        datacomp.write_subset(path, holes, "json:uid", out)
    half = pq.read_table(path)
    pq.write_table(half.append_column("weight", [[0.5] * 150]), tmp_path / "half.parquet")
    with pytest.raises(ValueError, match=r"the weight 0\.5; DataComp's format knows whole numbers"):
        datacomp.write_subset(tmp_path / "half.parquet", old, "json:uid", out)
    np.save(tmp_path / "order.npy", np.array([(2, 1), (1, 2)], dtype="u8,u8"))
    with pytest.raises(ValueError, match="is not sorted"):
        datacomp.read_subset(tmp_path / "order.npy", old, "json:uid", out)
    np.save(tmp_path / "flat.npy", np.arange(4))
    with pytest.raises(ValueError, match="holds int64"):
        datacomp.read_subset(tmp_path / "flat.npy", old, "json:uid", out)
    np.save(tmp_path / "other.npy", np.array([(1, 2)], dtype="u8,u8"))
    with pytest.raises(ValueError, match=r"none of the 1 uids of .* is in json:uid of the score"):
        datacomp.read_subset(tmp_path / "other.npy", old, "json:uid", out)
    assert not out.exists()


def test_lists_of_the_command_combine(tables, tmp_path):
    old, _ = tables
    for seed in (0, 1):
        from_table.draw(Table(old.folder), 60, seed, tmp_path / f"{seed}.parquet")
    combine("union", [tmp_path / "0.parquet", tmp_path / "1.parquet"], tmp_path / "u.parquet")
    one, other = keys(tmp_path / "0.parquet"), keys(tmp_path / "1.parquet")
    assert keys(tmp_path / "u.parquet") == one | other
