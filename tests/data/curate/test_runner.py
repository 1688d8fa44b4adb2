"""A curation is a function of the samples: not of shards, workers, or where it was stopped."""

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.score_table import kept, make_store, make_table

from counterpoint.data.curate.base import Filter, GroupFilter, numbers, vectors
from counterpoint.data.curate.filters.duplicates.exact_duplicates import ExactDuplicates
from counterpoint.data.curate.filters.general.basic import Basic
from counterpoint.data.curate.runner import Curation
from counterpoint.data.curate.stores import Store
from counterpoint.data.curate.table import Table

N = 700
RNG = np.random.default_rng(0)
COLUMNS = {
    "width": RNG.integers(50, 900, N).tolist(),
    "height": RNG.integers(50, 900, N).tolist(),
    "words": RNG.integers(1, 9, N).tolist(),
    "image_hash": RNG.integers(0, 300, N).tolist(),
    "error": [("bad_image" if row % 97 == 3 else None) for row in range(N)],
}
COLUMNS["width"] = [
    w if e is None else None for w, e in zip(COLUMNS["width"], COLUMNS["error"], strict=True)
]


@dataclass(frozen=True)
class AboveMean(Filter):
    """Keeps rows at or above the mean width, and doubles the weight of even keys."""

    reads = ("width",)
    writes = ("keep", "weight", "wide")

    def partial(self, rows):
        width = numbers(rows, "width")
        return {"sum": np.array(width.sum(dtype=np.int64)), "rows": np.array(len(width))}

    def finish(self, total):
        return {"mean": total["sum"] / total["rows"]}

    def apply(self, rows, state):
        width, key = numbers(rows, "width"), numbers(rows, "key")
        return {
            "keep": width >= state["mean"],
            "weight": np.where(key % 2 == 0, 2.0, 0.5),
            "wide": width / state["mean"],
        }


@dataclass(frozen=True)
class LongestOfCluster(GroupFilter):
    """Keeps the rows of each cluster whose vector is the longest."""

    reads = ("clip.id", "clip.image", "wide")

    def groups(self, rows, state):
        return numbers(rows, "clip.id")

    def apply_groups(self, rows, starts, state):
        length = np.linalg.norm(vectors(rows, "clip.image", normalize=False), axis=1)
        longest = np.maximum.reduceat(length, starts[:-1])
        return {"keep": length == np.repeat(longest, np.diff(starts))}


@dataclass(frozen=True)
class FirstOfGroup(GroupFilter):
    """Keeps the first row of each group as it is given them."""

    reads = ("image_hash",)

    def groups(self, rows, state):
        return numbers(rows, "image_hash")

    def apply_groups(self, rows, starts, state):
        keep = np.zeros(rows.num_rows, dtype=bool)
        keep[starts[:-1]] = True
        return {"keep": keep}


def test_rows_of_a_group_come_by_their_keys(tmp_path):
    table = make_table(tmp_path / "table", COLUMNS, [100] * 7, np.arange(N)[::-1])
    Curation(table, {"first": FirstOfGroup()}, {}, tmp_path / "out").run()
    lowest = {}
    for row, (image, error) in enumerate(zip(COLUMNS["image_hash"], COLUMNS["error"], strict=True)):
        if error is None:
            lowest.setdefault(image, row * 7919 - 10**6)
    assert set(kept(tmp_path / "out")) == set(lowest.values())


def filters():
    return {
        "basic": Basic(min_side=100),
        "copies": ExactDuplicates(),
        "mean": AboveMean(),
        "longest": LongestOfCluster(),
    }


def store_rows(table):
    rows = {}
    for path in table.files:
        for key in pq.read_table(path)["key"].to_pylist():
            if key % 5:
                rng = np.random.default_rng(key % 10**9)
                image = rng.normal(size=4).astype(np.float16)
                rows[key] = {"image": image, "id": np.int64(abs(key) % 30)}
    return rows


def run(folder, shards, order=None, **options):
    if not (folder / "store").exists():
        table = make_table(folder / "table", COLUMNS, shards, order)
        make_store(folder / "store", table, store_rows(table))
    table, store = Table(folder / "table"), Store(folder / "store")
    summary = Curation(table, filters(), {"clip": store}, folder / "out", **options).run()
    return summary, kept(folder / "out")


def expected():
    """The same by hand, over all rows at once."""
    rows = []
    for row in range(N):
        rows.append(
            {name: column[row] for name, column in COLUMNS.items()} | {"key": row * 7919 - 10**6}
        )
    rows = [r for r in rows if r["width"] is not None]
    return [
        r
        for r in rows
        if min(r["width"], r["height"]) >= 100
        and r["words"] >= 3
        and max(r["width"], r["height"]) <= 3 * min(r["width"], r["height"])
    ]


def test_the_filters_are_applied_in_sequence(tmp_path):
    summary, result = run(tmp_path, [100] * 7)
    basic = expected()
    assert [each["name"] for each in summary["filters"]] == ["basic", "copies", "mean", "longest"]
    assert summary["filters"][0]["lack"] == sum(w is None for w in COLUMNS["width"])
    assert summary["filters"][0]["kept"] == len(basic)
    assert summary["filters"][1]["kept"] == len({r["image_hash"] for r in basic})
    assert summary["kept"] == len(result) > 10
    # What stays of each image was chosen by a hash; from there on all follows.
    copies = pq.read_table(next((tmp_path / "out/steps").glob("copies-*")) / "web")
    alive = set(np.flatnonzero(copies["verdict"].to_numpy() == 0) * 7919 - 10**6)
    assert alive <= {r["key"] for r in basic}
    rows = [r for r in basic if r["key"] in alive]
    mean = sum(r["width"] for r in rows) / len(rows)
    rows = [r for r in rows if r["width"] >= mean and r["key"] % 5]
    best = {}
    for r in rows:
        image = np.random.default_rng(r["key"] % 10**9).normal(size=4).astype(np.float16)
        length = np.linalg.norm(image.astype(np.float32))
        cluster = abs(r["key"]) % 30
        if length > best.get(cluster, (0, 0))[0]:
            best[cluster] = (length, r["key"])
    keys = {key for _, key in best.values()}
    assert result == {key: (2.0 if key % 2 == 0 else 0.5) for key in keys}


@pytest.mark.parametrize("shards", [[N], [1, 2, 3, 694], [70] * 10])
def test_nothing_depends_on_shards(tmp_path, shards):
    _, one = run(tmp_path / "a", [100] * 7)
    _, other = run(tmp_path / "b", shards, np.random.default_rng(5).permutation(N))
    assert one == other


class Stops:
    """An engine that dies after so many tasks."""

    def __init__(self, tasks):
        self.left = tasks

    def map(self, function, items):
        for item in items:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield function(item)


class Looks(Stops):
    """Also notes whose rows are on the disk after each task."""

    def __init__(self, tasks, folder):
        super().__init__(tasks)
        self.folder, self.seen = folder, []

    def map(self, function, items):
        for result in super().map(function, items):
            written = self.folder.glob("*/scatter/*")
            self.seen.append(tuple(sorted(path.name for path in written)))
            yield result


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("counterpoint.data.curate.runner.ROWS_A_BLOCK", 1)
    monkeypatch.setattr("counterpoint.data.curate.shuffle.BUCKET_BYTES", 1 << 12)
    monkeypatch.setattr("counterpoint.data.curate.runner.BUCKET_BYTES", 1 << 12)
    _, one = run(tmp_path / "a", [100] * 7)
    for tasks in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt):
            _, other = run(tmp_path / "b", [100] * 7, engine=Stops(tasks))
            break
    assert tasks > 20
    assert one == other
    files = list((tmp_path / "a/out/steps").rglob("*.parquet"))
    assert len(files) == 4 * 7
    for path in files:
        # The folder's hash covers the times of the store's files.
        step = path.parts[len((tmp_path / "a/out/steps").parts)].partition("-")[0]
        (other_path,) = (tmp_path / "b/out/steps").glob(f"{step}-*/web/{path.name}")
        assert path.read_bytes() == other_path.read_bytes()
    lists = [(tmp_path / name / "out/keep.parquet").read_bytes() for name in "ab"]
    assert lists[0] == lists[1]


@dataclass(frozen=True)
class LowestKeys(GroupFilter):
    """Keeps rows that have the lowest key of all of their width, and of all of their height."""

    columns: tuple[str, ...] = ("width", "height")
    in_parts: bool = True

    reads = ("width", "height")

    def parts(self):
        if not self.in_parts:
            return (self,)
        return [LowestKeys((column,), in_parts=False) for column in self.columns]

    def groups(self, rows, state):
        signs = {"width": 1, "height": -1}
        return np.stack([signs[name] * numbers(rows, name) for name in self.columns], axis=1)

    def apply_groups(self, rows, starts, state):
        keep = np.zeros(rows.num_rows, dtype=bool)
        keep[starts[:-1]] = True
        return {"keep": keep}


def test_parts_of_a_filter_all_have_to_keep_a_row(tmp_path, many_tasks):
    table = make_table(tmp_path / "table", COLUMNS, [100] * 7)
    columns = {name: np.array(COLUMNS[name], dtype=float) for name in ("width", "height")}
    usable = [row for row in range(N) if COLUMNS["error"][row] is None]
    expected = {
        row * 7919 - 10**6
        for row in usable
        if not any(
            each[other] == each[row] for each in columns.values() for other in usable if other < row
        )
    }
    assert 100 < len(expected) < 500
    Curation(table, {"low": LowestKeys(in_parts=False)}, {}, tmp_path / "whole").run()
    assert kept(tmp_path / "whole").keys() == expected
    for tasks in itertools.count(1):
        with contextlib.suppress(KeyboardInterrupt):
            engine = Looks(tasks, tmp_path / "out/steps")
            Curation(table, {"low": LowestKeys()}, {}, tmp_path / "out", engine).run()
            break
    assert kept(tmp_path / "out").keys() == expected
    engine = Looks(10**6, tmp_path / "again/steps")
    Curation(table, {"low": LowestKeys()}, {}, tmp_path / "again", engine).run()
    assert list(dict.fromkeys(engine.seen)) == [("0",), ("1",), ()]
    assert kept(tmp_path / "again").keys() == expected


def test_files_that_a_loss_of_power_left_empty_are_refused(tmp_path, many_tasks):
    table = make_table(tmp_path / "table", COLUMNS, [100] * 7)
    curation = Curation(table, {"low": LowestKeys()}, {}, tmp_path / "out", Stops(9))
    with contextlib.suppress(KeyboardInterrupt):
        curation.run()
    (folder,) = (tmp_path / "out/steps").glob("low-*/scatter/0")
    written = sorted(folder.iterdir())
    assert len(written) > 1
    written[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"000000\.arrow is damaged .*; remove .*low-.* and start"):
        Curation(table, {"low": LowestKeys()}, {}, tmp_path / "out").run()


@dataclass(frozen=True)
class Everything(Filter):
    """Keeps what it sees."""

    reads = ()

    def apply(self, rows, state):
        return {"keep": np.ones(len(rows), dtype=bool)}


def test_samples_that_cannot_be_used_reach_no_filter(tmp_path):
    table = make_table(tmp_path / "table", COLUMNS, [300, 400])
    summary = Curation(table, {"all": Everything()}, {}, tmp_path / "out").run()
    usable = {n * 7919 - 10**6 for n, error in enumerate(COLUMNS["error"]) if error is None}
    assert len(usable) < N
    assert kept(tmp_path / "out").keys() == usable
    assert summary["filters"][0]["lack"] == N - len(usable)


def test_what_is_missing_is_named(tmp_path):
    table = make_table(tmp_path / "table", COLUMNS, [N])
    with pytest.raises(ValueError, match="no store is called 'clip'"):
        Curation(table, filters(), {}, tmp_path / "out")
    with pytest.raises(ValueError, match="reads wide, which neither"):
        Curation(table, {"longest": LongestOfCluster()}, {"clip": None}, tmp_path / "out")
    with pytest.raises(ValueError, match="leave no sample of 700; the last, 'basic'"):
        Curation(table, {"basic": Basic(min_side=5000)}, {}, tmp_path / "out").run()
