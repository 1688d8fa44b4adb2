"""Keep-lists: kept samples, repetitions; compiling is safe, repeatable and bounded."""

import errno
import os
import pickle
import stat
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.files import beside
from counterpoint.data.order import keep_lists
from counterpoint.data.order import selection as module
from counterpoint.data.order.plan import Plan
from counterpoint.data.order.selection import LossWeights, RepeatWeights, Selection
from counterpoint.data.shards.manifest import SCHEMA, Manifest

COUNTS = [30, 0, 25, 40, 7]


def manifest(counts=COUNTS, urls=None, folder="/data"):
    num = len(counts)
    columns = {
        "source": ["s"] * num,
        "url": urls or [f"part{n % 2}/{n:05d}.tar" for n in range(num)],
        "num_samples": counts,
        "num_bytes": [0] * num,
        "sha256": [""] * num,
    }
    return Manifest(pa.table(columns, schema=SCHEMA), folder)


def write(path, rows, weights=None, form="int64"):
    """Writes rows (shard name, index)."""
    columns = {
        "shard": pa.array([name for name, _ in rows], pa.string()),
        "index": pa.array([index for _, index in rows], form),
        "key": pa.array([7] * len(rows), pa.int64()),
    }
    if weights is not None:
        columns["weight"] = pa.array(weights)
    pq.write_table(pa.table(columns), path)
    return path


def resolved(selection) -> dict[int, list[tuple[int, float]]]:
    found = {}
    for shard, count in enumerate(selection.counts.at(0).tolist()):
        indices, weights = selection.resolve(0, np.full(count, shard), np.arange(count))
        if count:
            found[shard] = list(zip(indices.tolist(), weights.tolist(), strict=True))
    return found


keeps = st.lists(
    st.sampled_from([(s, i) for s, count in enumerate(COUNTS) for i in range(count)]),
    unique=True,
    min_size=1,
    max_size=100,
)


@settings(max_examples=40)
@given(keeps, st.integers(0, 100), st.sampled_from([1, 3, 1000]), st.booleans())
def test_the_kept_are_the_listed(tmp_path_factory, rows, cut, chunk, weighted):
    folder = tmp_path_factory.mktemp("keep")
    named = [(f"{s:05d}.tar", i) for s, i in rows]
    weights = [0.25 * n for n in range(len(rows))] if weighted else None
    parts = [slice(0, cut), slice(cut, None)]
    paths = [
        write(folder / f"{n}.parquet", named[part], weights and weights[part], "int32")
        for n, part in enumerate(parts)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keep_lists, "ROWS_A_BATCH", chunk)
        patch.setattr(keep_lists, "ROWS_A_SPAN", chunk)
        selection = Selection.compile(paths, manifest(), folder / "cache", 0, LossWeights())
    assert selection.has_weights == weighted
    expected: dict[int, list] = {}
    for (shard, index), weight in zip(rows, weights or [1.0] * len(rows), strict=True):
        expected.setdefault(shard, []).append((index, weight))
    assert resolved(selection) == {shard: sorted(found) for shard, found in expected.items()}
    # However the list is sorted and split, it is the same selection.
    order = sorted(range(len(rows)), key=lambda row: rows[row])
    tidy = write(
        folder / "tidy.parquet",
        [named[row] for row in order],
        weights and [weights[row] for row in order],
    )
    again = Selection.compile([tidy], manifest(), folder / "cache", 0, LossWeights())
    assert again.folder != selection.folder
    assert again.fingerprint == selection.fingerprint


def test_the_plan_reads_every_kept_sample_once_an_epoch(tmp_path):
    rng = np.random.default_rng(0)
    kept = [(s, i) for s, count in enumerate(COUNTS) for i in range(count) if rng.random() < 0.4]
    path = write(tmp_path / "k.parquet", [(f"{s:05d}.tar", i) for s, i in kept])
    selection = Selection.compile([path], manifest(), tmp_path / "cache", 0)
    plan = Plan(selection.counts, seed=1, lanes=3, block=8)
    _, shards, ordinals = plan.locate(np.arange(len(kept)))
    indices, weights = selection.resolve(0, shards, ordinals)
    assert sorted(zip(shards.tolist(), indices.tolist(), strict=True)) == kept
    assert (weights == 1).all() and weights.dtype == np.float32
    assert indices.dtype == np.int64
    assert selection.resolve(0, shards[0], ordinals[0])[0] == indices[0]
    with pytest.raises(AssertionError):
        selection.resolve(0, np.array([1]), np.array([0]))


def test_weights_are_expected_repeats(tmp_path):
    """Whole weights exactly, fractions on average: 2,000 of weight 1.3, within 5 deviations."""
    num = 2000
    whole = manifest([3, num], ["0.tar", "1.tar"])
    rows = [("0.tar", 0), ("0.tar", 1), ("0.tar", 2)] + [("1.tar", i) for i in range(num)]
    path = write(tmp_path / "k.parquet", rows, [2.0, 0.0, 1.0] + [1.3] * num)
    selections = [
        Selection.compile([path], whole, tmp_path / f"c{seed}", seed) for seed in (0, 0, 1)
    ]
    first, again, other = (resolved(s) for s in selections)
    assert first == again
    assert first[0] == [(0, 1.0), (0, 1.0), (2, 1.0)] == other[0]
    times = Counter(index for index, _ in first[1])
    assert set(times.values()) == {1, 2} and len(times) == num
    assert abs(len(first[1]) - 1.3 * num) < 5 * (0.21 * num) ** 0.5
    twice = [{i for i, n in Counter(i for i, _ in r[1]).items() if n == 2} for r in (first, other)]
    assert 0.05 * num < len(twice[0] & twice[1]) < 0.13 * num  # independent: 0.09
    assert not selections[0].has_weights
    assert not (selections[0].folder / "weights.npy").exists()
    # Another place of the shards and another row of the manifest change nothing.
    moved = manifest([num, 3], ["x/1.tar", "y/0.tar"], "/elsewhere")
    swapped = resolved(Selection.compile([path], moved, tmp_path / "moved", 0))
    assert {0: swapped[1], 1: swapped[0]} == first


def test_names_may_be_addresses(tmp_path):
    urls = ["a/0.tar", "b/0.tar", "s3://bucket/b/0.tar", "1.tar"]
    urls += ["https://h/c/9.tar?sig=x/y", "https://h/d/9.tar?sig=x/y"]
    shards = manifest([5] * 6, urls)
    rows = [("/data/a/0.tar", 1), ("a/0.tar", 2), ("s3://bucket/b/0.tar", 3), ("1.tar", 4)]
    rows += [("c/9.tar", 0), ("https://h/c/9.tar", 1)]
    path = write(tmp_path / "k.parquet", rows)
    selection = Selection.compile([path], shards, tmp_path / "cache", 0)
    assert resolved(selection) == {0: [(1, 1.0), (2, 1.0)], 2: [(3, 1.0)], 3: [(4, 1.0)]} | {
        4: [(0, 1.0), (1, 1.0)]
    }
    for name in ("0.tar", "b/0.tar"):
        with pytest.raises(ValueError, match=rf"shard '{name}', and the manifest has [23] of that"):
            Selection.compile(
                [write(tmp_path / "x.parquet", [(name, 0)])], shards, tmp_path / "cache", 0
            )


def test_reuse_and_what_ends_it(tmp_path, monkeypatch):
    path = write(tmp_path / "k.parquet", [("00000.tar", 1), ("00002.tar", 3)])
    first = Selection.compile([path], manifest(), tmp_path / "cache", 0)
    calls = []
    original = keep_lists.KeepLists.count
    monkeypatch.setattr(
        keep_lists.KeepLists, "count", lambda self: calls.append(1) or original(self)
    )
    assert Selection.compile([path], manifest(), tmp_path / "cache", 0).folder == first.folder
    assert not calls
    changes = [
        lambda: Selection.compile([path], manifest([30, 0, 25, 40, 8]), tmp_path / "cache", 0),
        lambda: Selection.compile([path], manifest(), tmp_path / "cache", 1),
        lambda: Selection.compile([path], manifest(), tmp_path / "cache", 0, LossWeights()),
        lambda: Selection.compile(
            [write(path, [("00003.tar", 1)])], manifest(), tmp_path / "cache", 0, RepeatWeights()
        ),
    ]
    for number, change in enumerate(changes, start=1):
        assert change().folder != first.folder
        assert len(calls) == number
    copy = pickle.dumps(first)
    assert len(copy) < 1000
    assert resolved(pickle.loads(copy)) == resolved(first)


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    path = write(tmp_path / "k.parquet", [("00000.tar", 1)])
    cache = tmp_path / "cache"
    stamp = Selection.compile([path], manifest(), cache, 0).folder
    os.rename(stamp, dead := beside(stamp))
    (dead / "indices.npy").write_bytes(b"half")
    assert resolved(Selection.compile([path], manifest(), cache, 0)) == {0: [(1, 1.0)]}
    assert sorted(os.listdir(cache)) == [f".{stamp.name}.lock", stamp.name]


def test_others_may_use_what_one_user_has_compiled(tmp_path, monkeypatch):
    path = write(tmp_path / "k.parquet", [("00000.tar", 1)])
    cache = tmp_path / "cache"
    before = os.umask(0o022)
    try:
        compiled = Selection.compile([path], manifest(), cache, 0).folder
    finally:
        os.umask(before)
    assert stat.S_IMODE(compiled.stat().st_mode) == 0o755
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o644 for file in compiled.iterdir())

    def foreign(file, mode):
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setattr(module, "open", foreign, raising=False)
    assert resolved(Selection.compile([path], manifest(), cache, 0)) == {0: [(1, 1.0)]}
    with pytest.raises(ValueError, match=r"'.*cache' .* cannot be .* \(Permission denied\); copy"):
        Selection.compile([path], manifest(), cache, 1)


def compile_and_resolve(path, cache):
    found = []
    original = keep_lists.KeepLists.count
    keep_lists.KeepLists.count = lambda self: found.append(1) or original(self)
    selection = Selection.compile([path], manifest(), cache, 0)
    return len(found), resolved(selection)


def test_many_processes_compile_once(tmp_path):
    rows = [(f"{s:05d}.tar", i) for s, count in enumerate(COUNTS) for i in range(count)]
    path = write(tmp_path / "k.parquet", rows[::-1])
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:
        futures = [pool.submit(compile_and_resolve, path, tmp_path / "cache") for _ in range(8)]
        results = [future.result() for future in futures]
    assert sum(worked for worked, _ in results) >= 1
    assert all(found == results[0][1] for _, found in results)
    assert len(results[0][1]) == 4
    assert len([n for n in os.listdir(tmp_path / "cache") if not n.startswith(".")]) == 1


def test_a_column_of_words_and_a_folder_that_cannot_be_made(tmp_path):
    path = tmp_path / "k.parquet"
    pq.write_table(pa.table({"shard": ["00000.tar"], "index": [0], "weight": ["x"]}), path)
    with pytest.raises(ValueError, match=r"column weight of .* is string"):
        Selection.compile([path], manifest(), tmp_path / "cache", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be made .*; copy the keep-list"):
        Selection.compile([path], manifest(), tmp_path / "file" / "cache", 0)


@pytest.mark.parametrize(
    ("rows", "weights", "message"),
    [
        ([("nine.tar", 0)], None, "names the shard 'nine.tar', which the manifest does not have"),
        ([("0000.tar", 0)], None, "names the shard '0000.tar'"),
        ([("00000.tar", 30)], None, "sample 30 of the shard '/data/part0/00000.tar', which has 30"),
        ([("00000.tar", -1)], None, "sample -1 of the shard"),
        ([("00000.tar", 4), ("00003.tar", 4), ("00000.tar", 4)], None, "sample 4 of .* twice"),
        ([("00000.tar", 1)], [-0.5], "has the weight -0.5; weights are 0 or more"),
        ([("00000.tar", 1)], [float("nan")], "has the weight nan"),
        ([("00000.tar", 1)], [1e18], r"weight 1e\+18; more than 1,048,576 are too many: scale"),
        ([("00000.tar", 1)], [0.0], "round to no sample"),
        ([("00000.tar", 1), (None, 2)], None, "has empty cells"),
        ([], None, "keep no sample"),
    ],
)
def test_rows_that_cannot_be(tmp_path, rows, weights, message):
    path = write(tmp_path / "k.parquet", rows, weights)
    with pytest.raises(ValueError, match=message):
        Selection.compile([path], manifest(), tmp_path / "cache", 0)
    assert all(name.endswith(".lock") for name in os.listdir(tmp_path / "cache"))


def test_files_that_cannot_be(tmp_path, monkeypatch):
    good = write(tmp_path / "good.parquet", [("00000.tar", 1)])
    weighted = write(tmp_path / "weighted.parquet", [("00000.tar", 2)], [1.0])
    text = tmp_path / "text.parquet"
    text.write_text("hello")
    bare = tmp_path / "bare.parquet"
    pq.write_table(pa.table({"shard": ["a"]}), bare)
    floats = write(tmp_path / "floats.parquet", [("00000.tar", 1.5)], form="float64")

    numbers = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"shard": [0], "index": [1]}), numbers)

    def refused(paths, message):
        with pytest.raises(ValueError, match=message):
            Selection.compile(paths, manifest(), tmp_path / "cache", 0)

    refused([], "no keep-list given")
    refused([tmp_path / "none"], "none' cannot be read .*; give the path")
    refused([text], "is not a parquet file")
    refused([bare], "has no column index; it needs")
    refused([numbers], "column shard of the keep-list '.*' is int64; it holds the file names")
    refused([floats], "column index of the keep-list '.*' is double")
    scored = tmp_path / "scored/web/00000.parquet"
    scored.parent.mkdir(parents=True)
    pq.write_table(pa.table({"shard": ["00000.tar"], "index": [1], "error": ["bad_image"]}), scored)
    (tmp_path / "scored/table.json").write_text("{}")
    refused([scored], "is a shard of the score table '.*scored' and no keep-list; give one")
    refused([weighted, good], "'.*good.parquet' has no column weight, others have")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keep_lists.os, "posix_fallocate", full)
    refused([good], "cannot take the 4 bytes .*No space left on device.*; make room")
