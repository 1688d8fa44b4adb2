"""What a curation refuses, what makes it run again, and what it leaves alone."""

import importlib
import os
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.score_table import kept, make_store, make_table

from counterpoint.data.curate.base import Filter, GroupFilter, numbers
from counterpoint.data.curate.filters.concepts.match_concepts import MatchConcepts
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import Table
from counterpoint.data.shards.locks import locked

WIDTHS = [100, 200, 300, 400, 500]


@dataclass(frozen=True)
class Given(Filter):
    """Gives the columns that a test wants."""

    columns: tuple[tuple[str, tuple], ...]
    says: tuple[str, ...] = ()

    reads = ("width",)

    @property
    def writes(self):
        return self.says or tuple(name for name, _ in self.columns)

    def apply(self, rows, state):
        places = [WIDTHS.index(width) for width in numbers(rows, "width")]
        return {
            name: pa.array([values[place] for place in places if place < len(values)])
            for name, values in self.columns
        }


@dataclass(frozen=True)
class GivenToGroups(GroupFilter):
    """Gives weights to groups."""

    weight: float

    reads = ("width",)
    writes = ("weight",)

    def groups(self, rows, state):
        return numbers(rows, "width").astype(np.int64) % 2

    def apply_groups(self, rows, starts, state):
        return {"weight": np.full(len(rows), self.weight)}


@dataclass(frozen=True)
class AllVectors(GroupFilter):
    """Brings all vectors together."""

    reads = ("clip.image",)

    def groups(self, rows, state):
        return np.zeros(len(rows), dtype=np.int64)

    def apply_groups(self, rows, starts, state):
        return {"keep": np.ones(len(rows), dtype=bool)}


@pytest.fixture
def table(tmp_path):
    return make_table(tmp_path / "table", {"width": WIDTHS}, [2, 0, 3])


def weights(*values):
    return Given((("weight", values),))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, 1e39])
def test_a_weight_that_is_none_is_refused(table, tmp_path, wrong):
    for each in (weights(1.0, wrong, 1.0, 1.0, 1.0), GivenToGroups(wrong)):
        with pytest.raises(ValueError, match="a weight is a number from 0 up"):
            Curation(table, {"w": each}, {}, tmp_path / "out").run()


def test_a_product_of_weights_that_overflows_is_refused(table, tmp_path):
    filters = {"one": weights(*[1e30] * 5), "two": weights(*[1e30] * 5)}
    with pytest.raises(ValueError, match=r"multiply to 1e\+60"):
        Curation(table, filters, {}, tmp_path / "out").run()


def test_a_weight_that_rounds_to_nothing_leaves_the_row_out(table, tmp_path):
    filters = {"one": weights(1.0, 1e-30, 0.0, 1.0, 2.0), "two": weights(3.0, 1e-30, 1.0, 1.0, 1.0)}
    summary = Curation(table, filters, {}, tmp_path / "out").run()
    assert list(kept(tmp_path / "out").values()) == [3.0, 1.0, 2.0]
    assert [each["left_out"] for each in summary["filters"]] == [1, 1]


def test_what_a_filter_gives_is_checked(table, tmp_path):
    full = (True,) * 5
    for each, message in {
        Given((("keep", (True, True, True, None, True)),)): "leaves keep empty in 1 rows",
        Given((("keep", (True,)),)): "gives 1 values of keep for 2 rows",
        Given((("keep", full),), ("keep", "score")): "gives no column score",
    }.items():
        with pytest.raises(ValueError, match=message):
            Curation(table, {"given": each}, {}, tmp_path / "out").run()


@pytest.mark.parametrize("other", [(4, np.float32), (8, np.float16)])
def test_a_store_of_two_kinds_is_refused(tmp_path, monkeypatch, other):
    table = make_table(tmp_path / "table", {"width": WIDTHS}, [2, 3])
    for name, (size, kind) in (("one", (4, np.float16)), ("two", other)):
        values = {row * 7919 - 10**6: {"image": np.ones(size, kind)} for row in range(5)}
        make_store(tmp_path / name, table, values)
    (tmp_path / "two/web/00001.safetensors").replace(tmp_path / "one/web/00001.safetensors")
    stores = {"clip": Store(tmp_path / "one")}
    for rows_a_block in (1 << 20, 1):  # the shards meet in a block, and in a bucket
        monkeypatch.setattr("counterpoint.data.curate.runner.ROWS_A_BLOCK", rows_a_block)
        with pytest.raises(ValueError, match="in some shards and of"):
            out = tmp_path / f"out{rows_a_block}"
            Curation(table, {"all": AllVectors()}, stores, out).run()


def test_names_that_would_be_taken_for_others_are_refused(table, tmp_path):
    keep = Given((("keep", (True,) * 5),))
    for name in ("a/b", "..", "", ".hidden"):
        with pytest.raises(ValueError, match="becomes the name of files"):
            Curation(table, {name: keep}, {}, tmp_path / "out")
    for column in ("verdict", "key", "clip.score"):
        with pytest.raises(ValueError, match=f"writes {column}, which is the name"):
            Curation(table, {"f": Given(((column, (1,) * 5),))}, {}, tmp_path / "out")
    with pytest.raises(ValueError, match="is the score table itself"):
        Curation(table, {"f": keep}, {}, tmp_path / "table" / ".." / "table")


def test_one_curation_at_a_time_in_a_folder(table, tmp_path):
    curation = Curation(table, {"f": Given((("keep", (True,) * 5),))}, {}, tmp_path / "out")
    (tmp_path / "out").mkdir()
    lock = locked(tmp_path / "out" / ".lock")
    with lock, pytest.raises(ValueError, match="another curation runs in"):
        curation.run()
    assert curation.run()["kept"] == 5


def test_what_is_not_of_a_curation_stays(tmp_path):
    table = make_table(tmp_path / "tables" / "pool", {"width": WIDTHS}, [2, 3])
    note = tmp_path / "steps" / "mine" / "notes.txt"
    note.parent.mkdir(parents=True)
    note.write_text("mine")
    before = {path: path.read_bytes() for path in table.files}
    for at in range(2):
        columns = (("keep", tuple(place != at for place in range(5))),)
        Curation(table, {"f": Given(columns)}, {}, tmp_path).run()
        assert len(list((tmp_path / "steps").glob("f-*"))) == 1
    assert note.read_text() == "mine"
    assert {path: path.read_bytes() for path in Table(table.folder).files} == before


def test_a_folder_of_other_things_is_refused(table, tmp_path):
    curation = Curation(table, {"f": Given((("keep", (True,) * 5),))}, {}, tmp_path / "pool")
    (tmp_path / "pool").mkdir()
    shard = tmp_path / "pool" / "00000.tar"
    shard.touch()
    with pytest.raises(ValueError, match=r"holds other things \('00000\.tar'\); name a new"):
        curation.run()
    assert list((tmp_path / "pool").iterdir()) == [shard]
    shard.rename(tmp_path / "pool" / ".hidden")
    assert curation.run()["kept"] == 5
    shutil.rmtree(tmp_path / "pool" / "steps")  # to save room
    assert curation.run()["kept"] == 5


def test_a_refusal_leaves_no_empty_folder(table, tmp_path):
    curation = Curation(table, {"all": MatchConcepts("none.txt")}, {}, tmp_path / "new" / "out")
    with pytest.raises(ValueError, match=r"'none\.txt', which MatchConcepts needs"):
        curation.run()
    assert not (tmp_path / "new").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    with pytest.raises(ValueError, match=r"'none\.txt'"):
        replace(curation, out=mine / "out").run()
    assert list(mine.iterdir()) == []


def test_a_table_that_was_written_again_is_curated_again(table, tmp_path):
    filters = {"w": Given((("keep", (True, False, True, True, False)),))}
    assert Curation(table, filters, {}, tmp_path / "out").run()["kept"] == 3
    other = make_table(tmp_path / "table", {"width": [100] * 5}, [2, 0, 3])
    for path in other.files:  # however coarse the file system's clock is
        os.utime(path, ns=(1, 1))
    assert Curation(Table(other.folder), filters, {}, tmp_path / "out").run()["kept"] == 5


def test_what_to_remove_of_damaged_files_is_named(table, tmp_path):
    filters = {"w": Given((("keep", (True, False, True, True, False)),))}
    curation = Curation(table, filters, {}, tmp_path / "out")
    curation.run()
    (step,) = (tmp_path / "out" / "steps").iterdir()
    os.truncate(step / "web" / "00002.parquet", 40)
    with pytest.raises(ValueError, match=r"00002\.parquet' cannot be read .*: remove '.*w-\w{12}'"):
        curation.run()
    shutil.rmtree(step)
    assert curation.run()["kept"] == 3
    shutil.rmtree(step)
    os.truncate(table.files[2], 40)
    with pytest.raises(ValueError, match=r"remove '.*00002\.parquet' and start the command that"):
        Curation(Table(table.folder), filters, {}, tmp_path / "out").run()


def test_a_store_without_a_shard_is_refused(tmp_path):
    table = make_table(tmp_path / "table", {"width": WIDTHS}, [2, 3])
    vectors = {row * 7919 - 10**6: {"image": np.ones(4, np.float16)} for row in range(2)}
    make_store(tmp_path / "store", table, vectors)
    stores = {"clip": Store(tmp_path / "store")}
    curation = Curation(table, {"all": AllVectors()}, stores, tmp_path / "out")
    with pytest.raises(ValueError, match=r"'clip' .* has none of the 3 samples of web/00001"):
        curation.run()


def test_a_sample_without_a_row_is_left_out_though_no_other_of_its_shard_is_left(tmp_path):
    table = make_table(tmp_path / "table", {"width": WIDTHS}, [2, 3])
    vectors = {row * 7919 - 10**6: {"image": np.ones(4, np.float16)} for row in (0, 1, 3, 4)}
    make_store(tmp_path / "store", table, vectors)
    stores = {"clip": Store(tmp_path / "store")}
    filters = {"w": Given((("keep", (True, True, True, False, False)),)), "all": AllVectors()}
    summary = Curation(table, filters, stores, tmp_path / "out").run()
    assert (summary["kept"], summary["filters"][1]["lack"]) == (2, 1)


def test_a_store_that_has_grown_is_read_again_by_the_same_object(tmp_path):
    old = make_table(tmp_path / "old", {"width": WIDTHS}, [2, 3])
    vectors = {row * 7919 - 10**6: {"image": np.ones(4, np.float16)} for row in range(5)}
    make_store(tmp_path / "store", old, dict(list(vectors.items())[::4]))
    # In other shards: rows are found by the store's index.
    table = make_table(tmp_path / "table", {"width": WIDTHS}, [4, 1])
    filters, stores = {"all": AllVectors()}, {"clip": Store(tmp_path / "store")}
    curation = Curation(table, filters, stores, tmp_path / "out")
    assert curation.run()["kept"] == 2
    make_store(tmp_path / "store", old, vectors)
    assert curation.run()["kept"] == 5


CODE = """
from dataclasses import dataclass
from counterpoint.data.curate.base import Filter, numbers

@dataclass(frozen=True)
class Wide(Filter):
    reads = ("width",)

    def apply(self, rows, state):
        return {"keep": numbers(rows, "width") >= LIMIT}
"""


def test_a_filter_of_ones_own_runs_again_when_its_code_changes(table, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "own_filters_of_a_test.py"
    counts = []
    for limit in ("200", "350"):
        file.write_text(CODE.replace("LIMIT", limit))
        importlib.invalidate_caches()
        for cached in (tmp_path / "__pycache__").glob("*"):
            cached.unlink()
        module = importlib.import_module(file.stem)
        module = importlib.reload(module)
        summary = Curation(table, {"wide": module.Wide()}, {}, tmp_path / "out").run()
        counts.append(summary["kept"])
    assert counts == [4, 2]
    keys = pq.read_table(tmp_path / "out" / "keep.parquet")["key"]
    assert len(keys) == 2
