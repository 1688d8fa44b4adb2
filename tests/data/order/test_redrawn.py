"""Weights drawn anew: exact counts, the right frequencies, and one draw for everybody."""

import hashlib
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoint.data.order import draws as module
from counterpoint.data.order import selection as selections
from counterpoint.data.order.mixed_plan import MixedPlan
from counterpoint.data.order.selection import LossWeights, Redrawn, Selection
from counterpoint.data.shards.manifest import SCHEMA, Manifest

MASK = (1 << 64) - 1
EPOCHS = 300


def manifest(counts, sources=None, folder="/data"):
    columns = {
        "source": sources or ["s"] * len(counts),
        "url": [f"{n:05d}.tar" for n in range(len(counts))],
        "num_samples": counts,
        "num_bytes": [0] * len(counts),
        "sha256": [""] * len(counts),
    }
    return Manifest(pa.table(columns, schema=SCHEMA), folder)


def write(path, rows):
    """Writes rows (shard number, index, weight, key or None)."""
    shards, indices, weights, keys = zip(*rows, strict=True)
    columns = {
        "shard": [f"{shard:05d}.tar" for shard in shards],
        "index": pa.array(indices, pa.int32()),
        "weight": pa.array(weights, pa.float64()),
    }
    if keys[0] is not None:
        columns["key"] = pa.array(keys, pa.int64())
    pq.write_table(pa.table(columns), path)
    return path


def compiled(folder, rows, shards, seed=0):
    path = write(folder / "k.parquet", rows)
    return Selection.compile([path], shards, folder / "cache", seed, Redrawn())


def of_epoch(selection, epoch) -> list[tuple[int, int]]:
    """All (shard, index) of an epoch."""
    counts = selection.counts.at(epoch)
    shards = np.repeat(np.arange(len(counts)), counts)
    ordinals = np.concatenate([np.arange(count) for count in counts.tolist()])
    indices, weights = selection.resolve(epoch, shards, ordinals)
    assert (weights == 1).all()
    return list(zip(shards.tolist(), indices.tolist(), strict=True))


def plain_mix(value: int, key: int) -> int:
    x = (value * 0x9E3779B97F4A7C15 + key) & MASK
    for _ in range(2):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
        x = ((x ^ (x >> 31)) + 0x9E3779B97F4A7C15) & MASK
    return x


def plain_seed(*parts) -> int:
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def brute_force(rows, sources, seed, epoch) -> Counter:
    """The definition: of each source, whole copies and the lowest ranks, all sorted at once."""
    times: Counter = Counter()
    for source in sorted(set(sources)):
        ranked, expected = [], 0.0
        for shard, index, weight, key in sorted(rows, key=lambda row: row[:2]):
            if sources[shard] != source:
                continue
            weight = float(np.float32(weight))
            times[shard, index] += math.floor(weight)
            part = weight - math.floor(weight)
            expected += math.floor(part * 2**32) / 2**32
            if part:
                draw = plain_mix(key & MASK, plain_seed(seed, "redrawn", epoch)) >> 12
                uniform = (draw + 0.5) / 2**52
                rank = uniform / (1 - uniform) * ((1 - part) / part)
                ranked.append((rank, key, shard, index))
        for _, _, shard, index in sorted(ranked)[: math.floor(expected + 0.5)]:
            times[shard, index] += 1
    return +times


weights = st.one_of(
    st.floats(0, 3),
    st.sampled_from([0.0, 1.0, 2.0, 0.5, 1e-6, 1 - 2**-24, 1.5]),
)


@settings(max_examples=25)
@given(
    weights=st.lists(weights, min_size=8, max_size=60).filter(lambda w: sum(w) > 1),
    places=st.randoms(use_true_random=False),
    piece=st.sampled_from([3, 7, 1 << 16]),
    seed=st.integers(-(2**70), 2**70),
    filed=st.booleans(),
)
def test_equals_sorting_everything(tmp_path_factory, weights, places, piece, seed, filed):
    folder = tmp_path_factory.mktemp("redrawn")
    counts = [30, 0, 25, 40, 7]
    sources = ["a", "b", "a", "b", "a"]
    everywhere = [(s, i) for s, count in enumerate(counts) for i in range(count)]
    chosen = places.sample(everywhere, len(weights))
    keys = [places.getrandbits(64) - 2**63 for _ in weights]
    keys[1] = keys[0]  # Two samples of one key.
    rows = [(*place, w, k) for place, w, k in zip(chosen, weights, keys, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_ROWS", piece)
        patch.setattr(module, "FILED_ROWS", 0 if filed else 1 << 22)
        try:
            selection = compiled(folder, rows, manifest(counts, sources), seed)
        except ValueError as error:
            assert "round to no sample" in str(error)
            assert not any(brute_force(rows, sources, seed, 0).values())
            return
        for epoch in (0, 1, 12345):
            expected = brute_force(rows, sources, seed, epoch)
            found = of_epoch(selection, epoch)
            assert Counter(found) == expected
            assert len(found) == selection.counts.num_samples
            assert found == sorted(found)
        again = Selection.compile(
            [folder / "k.parquet"], manifest(counts, sources), folder / "cache", seed, Redrawn()
        )
        assert again.folder == selection.folder
        assert of_epoch(again, 1) == of_epoch(selection, 1)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """1,200 samples in 12 shards, three weights by turns; inclusions [epochs, samples]."""
    rng = np.random.default_rng(5)
    wanted = np.tile([0.2, 0.4, 0.9], 400)
    keys = rng.integers(-(2**63), 2**63, 1200).tolist()
    rows = [
        (n // 100, n % 100, float(w), k) for n, (w, k) in enumerate(zip(wanted, keys, strict=True))
    ]
    selection = compiled(tmp_path_factory.mktemp("pool"), rows, manifest([100] * 12))
    seen = np.zeros((EPOCHS, 1200), dtype=bool)
    for epoch in range(EPOCHS):
        found = of_epoch(selection, epoch)
        seen[epoch, [100 * shard + index for shard, index in found]] = True
    return wanted, seen, selection


def test_each_sample_comes_as_often_as_its_weight_says(pool):
    wanted, seen, _ = pool
    deviations = (seen.sum(0) - EPOCHS * wanted) / np.sqrt(EPOCHS * wanted * (1 - wanted))
    assert np.abs(deviations).max() < 5
    assert 0.9 < deviations.std() < 1.1
    for weight in (0.2, 0.4, 0.9):
        own = seen[:, wanted == weight]
        # 120,000 draws; the bias of Pareto sampling is of the order of 1 / 200.
        assert abs(own.mean() - weight) < 4 * math.sqrt(weight * (1 - weight) / own.size)
        frequencies = own.sum(0)
        assert frequencies.min() < EPOCHS * weight < frequencies.max()


def test_neighbours_and_epochs_are_independent(pool):
    """Correlations of 360,000 pairs: 5 deviations, and -1/1200 for the fixed number."""
    wanted, seen, _ = pool
    scaled = (seen - wanted) / np.sqrt(wanted * (1 - wanted))
    limit = 5 / math.sqrt(seen.size) + 1 / 1200
    assert abs((scaled[:, 1:] * scaled[:, :-1]).mean()) < limit
    assert abs((scaled[:, 100:] * scaled[:, :-100]).mean()) < limit
    assert abs((scaled[1:] * scaled[:-1]).mean()) < limit
    assert abs((scaled[2:] * scaled[:-2]).mean()) < limit


def test_every_epoch_has_the_same_number_and_never_fewer_a_shard_than_promised(pool):
    wanted, seen, selection = pool
    assert selection.counts.num_samples == round(wanted.sum()) == 600
    assert (seen.sum(1) == 600).all()
    by_shard = seen.reshape(EPOCHS, 12, 100).sum(2)
    assert (by_shard.min(0) >= selection.counts.least).all()
    assert (selection.counts.least > 0).all() and (by_shard.std(0) > 1).all()


def test_whole_copies_bound_the_shards_from_below(tmp_path):
    rows = [(0, i, 3.0, i) for i in range(10)] + [(2, i, 0.5, 100 + i) for i in range(10)]
    rows += [(3, 0, 0.0, 200)]
    selection = compiled(tmp_path, rows, manifest([10, 5, 400, 4]))
    assert selection.counts.least.tolist() == [30, 0, 1, 0]
    assert selection.counts.num_samples == 35


def test_a_plan_walks_through_what_each_epoch_draws(tmp_path):
    """Without shares one epoch of all sources; with shares each source in epochs of its own."""
    rng = np.random.default_rng(1)
    sources = ["a", "b", "a", "c"]
    rows = [(s, i, float(rng.uniform(0, 2)), 100 * s + i) for s in range(4) for i in range(20)]
    shards = manifest([20] * 4, sources)
    selection = compiled(tmp_path, rows, shards, seed=3)
    size = selection.counts.num_samples

    def taken(plan, num):
        epochs, numbers, ordinals = plan.locate(np.arange(num))
        indices, _ = selection.resolve(epochs, numbers, ordinals)
        return list(zip(epochs.tolist(), numbers.tolist(), indices.tolist(), strict=True))

    arguments = (selection.counts, shards.source_ids, shards.sources, 7, 3, 8)
    found = taken(MixedPlan(*arguments), 4 * size)
    for epoch in range(4):
        chunk = [(s, i) for e, s, i in found[epoch * size : (epoch + 1) * size] if e == epoch]
        assert Counter(chunk) == brute_force(rows, sources, 3, epoch)
    plan = MixedPlan(*arguments, {"a": 0.5, "b": 0.3, "c": 0.2})
    found = taken(plan, 400)
    seen = 0
    for source in "abc":
        own = [row for row in found if sources[row[1]] == source]
        for epoch in range(own[-1][0]):
            expected = brute_force(rows, sources, 3, epoch)
            chunk = Counter((s, i) for e, s, i in own if e == epoch)
            assert chunk == {p: n for p, n in expected.items() if sources[p[0]] == source}
            seen += 1
    assert seen >= 6
    # Any position resolves alone as in the sequence.
    other = MixedPlan(*arguments, {"a": 0.5, "b": 0.3, "c": 0.2})
    for position in (399, 5, 200):
        epochs, numbers, ordinals = other.locate(np.array([position]))
        index = selection.resolve(epochs, numbers, ordinals)[0]
        assert (int(epochs[0]), int(numbers[0]), int(index[0])) == found[position]


def test_the_same_keys_come_after_resharding(tmp_path):
    rng = np.random.default_rng(2)
    keys = rng.integers(-(2**63), 2**63, 300).tolist()
    weights = rng.uniform(0, 2, 300).tolist()
    kept = []
    for name, counts in (("a", [100] * 3), ("b", [7] * 43), ("c", [300])):
        order = rng.permutation(300) if name == "b" else np.arange(300)
        rows = [
            (n // counts[0], n % counts[0], weights[sample], keys[sample])
            for n, sample in enumerate(order.tolist())
        ]
        folder = tmp_path / name
        folder.mkdir()
        selection = compiled(folder, rows, manifest(counts))
        found = [Counter(of_epoch(selection, epoch)) for epoch in range(3)]
        key_of = {(shard, index): key for shard, index, _, key in rows}
        kept.append([{key_of[p]: n for p, n in epoch.items()} for epoch in found])
    assert kept[0] == kept[1] == kept[2]
    assert kept[0][0] != kept[0][1]


def test_without_keys_file_name_and_index_stand_in(tmp_path):
    rows = [(shard, index, 0.5, None) for shard in range(2) for index in range(50)]
    (tmp_path / "x").mkdir()
    first = compiled(tmp_path, rows, manifest([50, 50]))
    moved = compiled(tmp_path / "x", rows[::-1], manifest([50, 50], folder="/other"))
    assert [of_epoch(first, e) for e in range(3)] == [of_epoch(moved, e) for e in range(3)]
    assert first.fingerprint == moved.fingerprint
    assert len(of_epoch(first, 0)) == 50 and of_epoch(first, 0) != of_epoch(first, 1)
    keyed = {
        (shard, index): plain_mix(index, plain_seed("keep", f"{shard:05d}.tar"))
        for shard, index, _, _ in rows
    }
    listed = [(s, i, 0.5, k - 2**64 if k >= 2**63 else k) for (s, i), k in keyed.items()]
    assert Counter(of_epoch(first, 4)) == brute_force(listed, ["s", "s"], 0, 4)


def test_the_seed_changes_the_draw_and_not_the_files(tmp_path):
    rows = [(0, index, 0.5, index) for index in range(60)]
    first = compiled(tmp_path, rows, manifest([60]))
    other = Selection.compile(
        [tmp_path / "k.parquet"], manifest([60]), tmp_path / "cache", 1, Redrawn()
    )
    assert first.folder == other.folder
    assert of_epoch(first, 0) != of_epoch(other, 0)
    assert not first.has_weights and first.listed().counts.num_samples == 60
    plain = Selection.compile(
        [tmp_path / "k.parquet"], manifest([60]), tmp_path / "cache", 0, LossWeights()
    )
    assert plain.fingerprint != first.fingerprint


def draw(path, cache):
    made = []
    original = module.Draws._made
    module.Draws._made = lambda self, *args: made.append(1) or original(self, *args)
    try:
        selection = Selection.compile([path], manifest([200]), cache, 0, Redrawn())
        return of_epoch(selection, 3), len(made)
    finally:
        module.Draws._made = original


def test_large_draws_are_made_once_and_kept(tmp_path, monkeypatch):
    rows = [(0, index, 0.5, index) for index in range(200)]
    path, cache = write(tmp_path / "k.parquet", rows), tmp_path / "cache"
    expected, made = draw(path, cache)
    assert made == 1 and not list(cache.rglob("draw-*")), "small ones have no file"
    monkeypatch.setattr(module, "FILED_ROWS", 0)
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as processes:
        results = [processes.submit(draw, path, cache) for _ in range(8)]
        found = [result.result() for result in results]
    assert sum(made for _, made in found) == 1
    assert all(drawn == expected for drawn, _ in found)
    (file,) = cache.rglob("draw-*")
    assert not list(cache.rglob("*.part-*"))
    # A damaged file is made again; one of other contents is not believed.
    file.write_bytes(file.read_bytes()[:-30])
    assert draw(path, cache) == (expected, 1)
    np.savez(file.with_suffix(""), rank=1.0, key=0, row=0, counts=np.array([99]))
    assert draw(path, cache) == (expected, 1)
    assert draw(path, cache) == (expected, 0)
    file.unlink()

    def foreign(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "locked", foreign)
    assert draw(path, cache) == (expected, 1)
    assert not file.exists()


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    def refused(message, columns, counts=(50,)):
        path = tmp_path / "k.parquet"
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ValueError, match=message):
            Selection.compile([path], manifest(list(counts)), tmp_path / "cache", 0, Redrawn())

    shard = ["00000.tar"] * 50
    table = {"shard": shard, "index": range(50)}
    refused("Redrawn, and the keep-lists have no column weight", table)
    refused("round to no sample", table | {"weight": [0.001] * 50})
    refused(
        "column key of the keep-list '.*' is string", table | {"weight": [0.5] * 50, "key": shard}
    )
    refused("1 different values in 50 rows", table | {"weight": [0.5] * 50, "key": [7] * 50})
    half = [write(tmp_path / f"{n}.parquet", [(0, n, 0.5, key)]) for n, key in enumerate([1, None])]
    with pytest.raises(ValueError, match=r"1.parquet' has no column key, others have"):
        Selection.compile(half, manifest([50]), tmp_path / "cache", 0, Redrawn())
    monkeypatch.setattr(module, "WINDOW_ROWS", 3)
    rows = [(0, index, 0.5, index) for index in range(50)]
    with pytest.raises(ValueError, match="epoch 2 cannot be drawn: too many"):
        of_epoch(compiled(tmp_path, rows, manifest([50])), 2)


def test_few_shards_stay_in_memory(tmp_path, monkeypatch):
    rows = [(s, i, 1.5, 50 * s + i) for s in range(6) for i in range(50)]
    selection = compiled(tmp_path, rows, manifest([50] * 6))
    expected = of_epoch(selection, 0)
    monkeypatch.setattr(selections, "ROWS_KEPT", 200)
    few = Selection.compile(
        [tmp_path / "k.parquet"], manifest([50] * 6), tmp_path / "cache", 0, Redrawn()
    )
    assert of_epoch(few, 0) == expected
    assert sum(map(len, few._rows.values())) == few._num_kept <= 200
