"""Batches: a function of the step alone; bad samples are replaced the same way by anyone."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader

from counterpoint.data import dataset as module
from counterpoint.data.dataset import Randomness, SampleLoader, StepDataset, StepSampler
from counterpoint.data.errors import CAUSES
from counterpoint.data.index import index_shards
from counterpoint.data.manifest import SCHEMA, Manifest
from counterpoint.data.picture import Picture
from counterpoint.data.plan import Plan
from counterpoint.data.schedule import Schedule
from counterpoint.data.transforms import TrainTransform
from counterpoint.data.workers import start_worker


def tokenize(texts: list[str], context_length: int):
    """One token a character."""
    rows = [[ord(c) for c in text][:context_length] for text in texts]
    ids = torch.tensor([row + [0] * (context_length - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


FULL = TrainTransform(flip=0.5, rotate=10, brightness=0.2, contrast=0.2, saturation=0.2, erase=0.2)


def make(manifest, phases, rank=0, world_size=1, seed=3, transform=FULL):
    plan = Plan(manifest.counts, seed, lanes=4, block=8)
    loader = SampleLoader(manifest, transform, seed, image_size=16)
    return StepDataset(plan, Schedule(phases), loader, tokenize, 16, rank, world_size)


def texts(batch):
    return ["".join(chr(c) for c in row if c) for row in batch["text"].tolist()]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def manifest(shards, tmp_path):
    return index_shards(shards, tmp_path / "m.parquet")


def test_a_batch_has_what_was_agreed(manifest):
    dataset = make(manifest, [(4, 6)])
    assert len(dataset) == 4
    batch = dataset[1]
    assert {name: (tuple(v.shape), v.dtype) for name, v in batch.items()} == {
        "image": ((6, 3, 16, 16), torch.uint8),
        "text": ((6, 16), torch.int64),
        **{
            name: ((6,), torch.int64)
            for name in ("text_length", "key", "source", "shard", "status")
        },
    }
    assert batch["image"].is_contiguous()
    assert not batch["status"].any()
    _, shards, _ = dataset.plan.locate(np.arange(6, 12))
    assert batch["shard"].tolist() == shards.tolist()


def test_an_epoch_reads_every_pair_once_with_its_own_caption(manifest):
    batches = [make(manifest, [(7, 3)])[step] for step in range(7)]
    found = sorted(text for batch in batches for text in texts(batch))
    assert found == sorted(f"picture {number}" for number in range(21))
    keys = [key for batch in batches for key in batch["key"].tolist()]
    assert len(set(keys)) == 21


def test_pictures_differ_between_epochs_and_seeds_only(manifest):
    def by_key(dataset, steps):
        batches = [dataset[step] for step in steps]
        return {int(k): i for b in batches for k, i in zip(b["key"], b["image"], strict=True)}

    dataset = make(manifest, [(14, 3)])
    first, second = by_key(dataset, range(7)), by_key(dataset, range(7, 14))
    other = by_key(make(manifest, [(7, 3)], seed=4), range(7))
    assert first.keys() == second.keys() == other.keys()
    assert all(not torch.equal(first[key], second[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first)
    # The same sample in another batch of the same epoch looks the same.
    wide = by_key(make(manifest, [(1, 21)]), [0])
    assert all(torch.equal(first[key], wide[key]) for key in first)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_global_batch(manifest, world_size):
    phases = [(3, 6), (2, 12)]
    whole = make(manifest, phases)
    ranks = [make(manifest, phases, rank, world_size) for rank in range(world_size)]
    for step in range(5):
        lanes = whole.plan.lane(whole.schedule.positions(step))
        rows = np.arange(len(lanes))
        shares = [Schedule.share(rows, lanes, rank, world_size) for rank in range(world_size)]
        batch = whole[step]
        for rank, share in zip(ranks, shares, strict=True):
            assert same(rank[step], {name: value[share] for name, value in batch.items()})
        assert sorted(np.concatenate(shares).tolist()) == rows.tolist()


def test_pictures_wait_for_the_transform_within_bounds(manifest, monkeypatch):
    waiting, most = [], []

    class Watching(TrainTransform):
        def draw(self, *args):
            waiting.append(1)
            return super().draw(*args)

        def apply(self, *args):
            most.append(len(waiting))
            waiting.clear()
            return super().apply(*args)

    expected = make(manifest, [(1, 21)])[0]
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 5 * 3 * 20 * 24)
    arguments = {name: getattr(FULL, name) for name in ("flip", "rotate", "brightness", "erase")}
    colours = {name: getattr(FULL, name) for name in ("contrast", "saturation")}
    batch = make(manifest, [(1, 21)], transform=Watching(**arguments, **colours))[0]
    assert max(most) == 6
    assert same(batch, expected)


def test_a_sample_has_the_stream_of_its_own_generator():
    randomness = Randomness()
    for words in [(1, -2), (-(2**63), 2**63 - 1), (1, -2)]:
        generator = randomness.start(*words)
        key = np.array(words, dtype=np.int64).view(np.uint64)
        fresh = np.random.Generator(np.random.Philox(key=key))
        # 3 numbers leave a part of a block over, 32-bit draws half a number.
        assert generator.random(3).tolist() == fresh.random(3).tolist()
        assert generator.integers(0, 9, 3, dtype=np.uint32).tolist() == (
            fresh.integers(0, 9, 3, dtype=np.uint32).tolist()
        )


@pytest.mark.parametrize("decode", ["exact", "dct"])
def test_recorded_draws_give_the_picture_again(make_tar, make_picture, tmp_path, decode):
    files = {f"{n}": make_picture(n, 150, 200 + n, "JPEG", quality=95) for n in range(6)}
    members = [(f"{key}.jpg", data) for key, data in files.items()]
    members += [(f"{key}.txt", key.encode()) for key in files]
    tar = make_tar(tmp_path / "0.tar", sorted(members))
    manifest = index_shards([tar], tmp_path / "m.parquet")
    options = {"flip": 0.5, "rotate": 20, "hue": 0.1, "erase": 0.5, "decode": decode}
    transform = TrainTransform(scale=(0.9, 1.0), **options)
    loader = SampleLoader(manifest, transform, seed=0, image_size=64)
    images, samples = loader.load([(0, 0, ordinal) for ordinal in range(6)])
    for image, sample in zip(images, samples, strict=True):
        assert sample.params.shape == (len(transform.columns),)
        again = transform.apply(Picture.open(files[sample.text]), 64, sample.params.copy())
        assert torch.equal(again, image)
    # Only what the transform asked for was decoded.
    picture = loader.decode(0, 0, 0).picture
    assert picture.num_bytes == 3 * (75 * 100 if decode == "dct" else 150 * 200)


def load(dataset, first_step, num_workers):
    sampler = StepSampler(first_step, len(dataset))
    workers = {"worker_init_fn": start_worker, "prefetch_factor": 4} if num_workers else {}
    loader = DataLoader(
        dataset, batch_size=None, sampler=sampler, num_workers=num_workers, **workers
    )
    assert len(loader) == len(dataset)
    return list(loader)


@pytest.fixture
def broken(make_tar, make_pairs, make_picture, tmp_path):
    """Five shards with one cause each, next to good samples, and what is wrong where."""
    members = [make_pairs(6 * number, 6) for number in range(5)]
    members[0][3] = (members[0][3][0], make_picture(1)[:100])  # ordinal 1
    members[1][7] = (members[1][7][0], b"\xff")  # ordinal 2
    del members[2][10]  # the text of ordinal 3
    del members[2][0]  # the picture of ordinal 0
    paths = [make_tar(tmp_path / f"{number}.tar", m) for number, m in enumerate(members)]
    manifest = index_shards(paths, tmp_path / "m.parquet")
    os.unlink(paths[3])
    content = Path(paths[4]).read_bytes()
    Path(paths[4]).write_bytes(content[: content.index(b"000000027.txt")])
    for number in range(5):
        if os.path.exists(f"{paths[number]}.index"):
            os.unlink(f"{paths[number]}.index")
    bad = {(0, 1): "bad_image", (1, 2): "bad_text", (2, 0): "no_image", (2, 3): "no_caption"}
    bad |= {(3, ordinal): "shard_missing" for ordinal in range(6)}
    bad |= {(4, ordinal): "shard_truncated" for ordinal in range(3, 6)}
    return manifest, bad


def test_bad_samples_are_replaced_by_rule_and_named(broken):
    manifest, bad = broken
    loader = SampleLoader(manifest, FULL, seed=0, image_size=16)
    for shard in range(5):
        for ordinal in range(6):
            sample = loader.decode(0, shard, ordinal)
            assert CAUSES[sample.status] == bad.get((shard, ordinal), "read")
            # Written out: the next good ordinal of the shard, else the same one of the next shard.
            place = (shard, ordinal)
            while place in bad:
                place = (0, ordinal) if shard == 3 else (shard, (place[1] + 1) % 6)
                if shard == 3:
                    places = [(4, (ordinal + step) % 6) for step in range(4)]
                    place = next(p for p in places if p not in bad)
            expected = loader.decode(0, *place)
            assert sample.key == expected.key and sample.text == expected.text
            assert torch.equal(sample.picture.pixels(), expected.picture.pixels())
            assert np.array_equal(sample.params, expected.params)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_and_restarts_change_nothing(broken, num_workers):
    manifest, bad = broken
    dataset = make(manifest, [(10, 6)])
    expected = load(dataset, 0, 0)
    counted = [int((batch["status"] != 0).sum()) for batch in expected[:5]]
    assert sum(counted) == len(bad)
    for first_step in (0, 7):
        batches = load(make(manifest, [(10, 6)]), first_step, num_workers)
        assert len(batches) == 10 - first_step
        assert all(same(a, b) for a, b in zip(batches, expected[first_step:], strict=True))


def test_when_nothing_is_good_the_batch_is_blank_and_all_errors(manifest, shards):
    for path in shards:
        os.unlink(path)
    batch = make(manifest, [(1, 4)], transform=TrainTransform())[0]
    assert (batch["status"] == CAUSES.index("shard_missing")).all()
    assert (batch["image"] == 255).all()
    assert texts(batch) == [""] * 4


def test_the_sampler_starts_anywhere_and_keeps_the_length_of_the_run():
    sampler = StepSampler(3, 7)
    assert list(sampler) == list(sampler) == [3, 4, 5, 6]
    assert len(sampler) == 7
    assert list(StepSampler(7, 7)) == []


def test_replacements_stay_within_the_source(make_tar, make_pairs, tmp_path):
    urls = [make_tar(tmp_path / f"{n}.tar", make_pairs(10 * n, 2)) for n in range(4)]
    os.unlink(urls[0])
    columns = {
        "source": ["a", "b", "a", "b"],
        "url": urls,
        "num_samples": [2, 2, 2, 2],
        "num_bytes": [0] * 4,
        "sha256": [""] * 4,
    }
    manifest = Manifest(pa.table(columns, schema=SCHEMA), tmp_path)
    loader = SampleLoader(manifest, FULL, seed=0, image_size=16)
    assert [loader.decode(0, 0, ordinal).text for ordinal in (0, 1)] == ["picture 20", "picture 21"]
