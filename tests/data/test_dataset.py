"""Batches: a function of the step alone; bad samples are replaced the same way by anyone."""

import os

import numpy as np
import pytest
import torch
from recipes import loader
from torch.utils.data import DataLoader

from counterpoint.data.dataset import StepDataset, StepLoader, StepSampler, join
from counterpoint.data.errors import CAUSES
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.data.order.plan import Plan
from counterpoint.data.order.steps import Steps
from counterpoint.data.shards.index import index_shards
from counterpoint.data.text.syntax import WordReducer
from counterpoint.data.text.tokenize import ClipTokenizer
from counterpoint.data.workers import start_worker


def tokenize(texts: list[str], context_length: int):
    """One token a character."""
    rows = [[ord(c) for c in text][:context_length] for text in texts]
    ids = torch.tensor([row + [0] * (context_length - len(row)) for row in rows])
    return ids, torch.tensor([len(row) for row in rows])


FULL = TrainTransform(flip=0.5, rotate=10, brightness=0.2, contrast=0.2, saturation=0.2, erase=0.2)


def make(manifest, phases, rank=0, world_size=1, seed=3, transform=FULL, **more):
    plan = Plan(manifest.counts, seed, lanes=4, block=8)
    samples = loader(manifest, transform, seed=seed)
    return StepDataset(plan, Steps(phases), samples, tokenize, 16, rank, world_size, **more)


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
        "image.augmentation": ((6, len(FULL.columns)), torch.float64),
        "text": ((6, 16), torch.int64),
        **{
            name: ((6,), torch.int64)
            for name in ("text_length", "key", "source", "shard", "status")
        },
    }
    assert batch["image"].is_contiguous(memory_format=torch.channels_last)
    assert not batch["status"].any()
    _, shards, _ = dataset.plan.locate(np.arange(6, 12))
    assert batch["shard"].tolist() == shards.tolist()


def test_an_epoch_reads_every_pair_once_with_its_own_caption(manifest):
    batches = [make(manifest, [(7, 3)])[step] for step in range(7)]
    found = sorted(text for batch in batches for text in texts(batch))
    assert found == sorted(f"image {number}" for number in range(21))
    keys = [key for batch in batches for key in batch["key"].tolist()]
    assert len(set(keys)) == 21


def test_words_are_left_out_in_their_phase_only(manifest):
    class FirstWord(WordReducer):
        def __call__(self, text):
            return text.split()[0]

    dataset = make(manifest, [(2, 3), (2, 4)], word_reducers=[FirstWord(), None])
    plain = make(manifest, [(2, 3), (2, 4)])
    for step in range(4):
        batch, whole = dataset[step], plain[step]
        if step < 2:
            assert texts(batch) == ["image"] * 3
            batch["text"], batch["text_length"] = whole["text"], whole["text_length"]
        assert same(batch, whole)


def test_images_differ_between_epochs_and_seeds_only(manifest):
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
        lanes = whole.plan.lane(whole.steps.positions(step))
        rows = np.arange(len(lanes))
        shares = [Steps.deal(rows, lanes, rank, world_size) for rank in range(world_size)]
        batch = whole[step]
        for rank, share in zip(ranks, shares, strict=True):
            assert same(rank[step], {name: value[share] for name, value in batch.items()})
        assert sorted(np.concatenate(shares).tolist()) == rows.tolist()


def load(dataset, first_step, num_workers):
    sampler = StepSampler(dataset, first_step)
    workers = {"worker_init_fn": start_worker, "prefetch_factor": 4} if num_workers else {}
    batches = StepLoader(
        DataLoader(dataset, batch_size=None, sampler=sampler, num_workers=num_workers, **workers),
        dataset,
        first_step,
    )
    assert len(batches) == len(dataset)
    return [join(parts) for parts in batches]


@pytest.mark.parametrize(("num_workers", "part_rows"), [(1, 6), (2, 6), (2, 4), (1, 1)])
def test_workers_parts_and_restarts_change_nothing(broken, num_workers, part_rows):
    manifest, bad = broken
    dataset = make(manifest, [(10, 6)])
    expected = load(dataset, 0, 0)
    counted = [int((batch["status"] != 0).sum()) for batch in expected[:5]]
    assert sum(counted) == len(bad)
    for first_step in (0, 7):
        batches = load(make(manifest, [(10, 6)], part_rows=part_rows), first_step, num_workers)
        assert len(batches) == 10 - first_step
        assert all(same(a, b) for a, b in zip(batches, expected[first_step:], strict=True))


def test_when_nothing_is_good_the_batch_is_blank_and_all_errors(manifest, shards):
    for path in shards:
        os.unlink(path)
    batch = make(manifest, [(1, 4)], transform=TrainTransform())[0]
    assert (batch["status"] == CAUSES.index("shard_missing")).all()
    assert (batch["image"] == 255).all()
    assert texts(batch) == [""] * 4


def test_parts_of_a_step():
    class Sizes:
        steps = Steps([(2, 8), (1, 2)])
        num_parts = StepDataset.num_parts
        world_size, part_rows = 1, 3

        def __len__(self):
            return 3

    assert list(StepSampler(Sizes())) == [*((s, p) for s in (0, 1) for p in (0, 1, 2)), (2, 0)]  # type: ignore[arg-type]
    assert list(StepSampler(Sizes(), 2)) == [(2, 0)]  # type: ignore[arg-type]


def test_large_batches_are_made_in_parts(manifest):
    dataset = make(manifest, [(1, 40)])
    assert dataset.part_rows == (64 << 20) // (3 * 16 * 16)
    small = make(manifest, [(1, 40)], part_rows=16)
    assert [len(small[0, part]["key"]) for part in range(small.num_parts(0))] == [16, 16, 8]
    assert same(join([small[0, part] for part in range(3)]), dataset[0])


def test_no_caption_stops_a_batch(make_tar, make_pairs, tmp_path):
    members = make_pairs(0, 4)
    members[4] = (members[4][0], b"&#" + b"1" * 8000 + b"; a dog")
    manifest = index_shards([make_tar(tmp_path / "0.tar", members)], tmp_path / "m.parquet")
    plan = Plan(manifest.counts, 0, lanes=1, block=8)
    samples, tokenizer = loader(manifest, FULL), ClipTokenizer()
    batch = StepDataset(plan, Steps([(1, 4)]), samples, tokenizer, 8)[0]
    assert not batch["status"].any()
    expected = [tokenizer([text], 8)[0][0].tolist() for text in ("\ufffd a dog", "image 0")]
    assert [row in batch["text"].tolist() for row in expected] == [True, True]
