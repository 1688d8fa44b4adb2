"""Shards are cached before they are read; batches equal those from disk."""

import os

import numpy as np
import pytest
import torch
from hostile_http import FAULTS, serve
from recipes import loader
from torch.utils.data import DataLoader
from waiting import until

from counterpoint.data.dataset import StepDataset
from counterpoint.data.images.transforms import EvalTransform
from counterpoint.data.order.plan import Plan
from counterpoint.data.order.steps import Steps
from counterpoint.data.shards.cache import ShardCache
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.prefetch import NEW_STEPS, Prefetcher
from counterpoint.data.shards.reader import ShardReader
from counterpoint.data.shards.transport import Transport


class Recorder:
    """A stand-in for the cache that records requests; the test decides which shards it has."""

    def __init__(self):
        self.asked: list[str] = []
        self.at_hand = True
        self.error: Exception | None = None

    def prefetch(self, url: str, num_bytes: int, sha256: str) -> bool:
        self.asked.append(url)
        if self.error:
            raise self.error
        return self.at_hand


def make(store, horizon: int = 4, stride: int = 1, total_steps: int = 100) -> Prefetcher:
    return Prefetcher(
        lambda step: np.array([step // 2, step // 2, step // 2 + 1]),
        store,
        urls=[str(number) for number in range(100)],
        num_bytes=[1] * 100,
        total_steps=total_steps,
        horizon=horizon,
        stride=stride,
        interval=0.01,
    )


def test_what_is_wanted_is_what_the_steps_ahead_need():
    assert make(None).wanted(3) == [1, 2, 3, 4]
    assert make(None, stride=3, horizon=6).wanted(0) == [0, 1, 2, 3, 4]
    assert make(None, horizon=50).wanted(97) == [48, 49, 50]
    patient = make(None, horizon=20)
    assert max(patient.wanted(0)) == (NEW_STEPS - 1) // 2 + 1
    assert max(patient.wanted(1)) == (2 * NEW_STEPS - 1) // 2 + 1
    assert patient.wanted(60)[0] == 30


def test_each_shard_is_asked_for_once_in_the_order_of_need_unless_it_is_not_at_hand():
    store = Recorder()
    prefetcher = make(store)
    rounds, advance = [], prefetcher._advance
    prefetcher._advance = lambda marked: (advance(marked), rounds.append(marked))
    prefetcher.at(0)
    until(lambda: len(rounds) >= 4)
    assert store.asked == ["0", "1", "2", "3"]
    store.at_hand = False
    prefetcher.at(2)
    until(lambda: store.asked[4:].count("4") > 2)
    assert set(store.asked[4:]) == {"4"}


def test_an_error_that_concerns_every_shard_reaches_the_loader():
    store = Recorder()
    store.error = ValueError("the disk is full")
    prefetcher = make(store)
    prefetcher.at(0)
    until(lambda: prefetcher._error)
    with pytest.raises(ValueError, match="the disk is full"):
        prefetcher.at(1)


class Prefetching(torch.utils.data.Dataset):
    """Calls the prefetcher as a loader worker does."""

    def __init__(self, dataset: StepDataset, prefetcher: Prefetcher):
        self.dataset = dataset
        self.prefetcher = prefetcher

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, step: int) -> dict:
        self.prefetcher.at(step)
        return self.dataset[step]


def tokenize(texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(len(texts), length, dtype=torch.int64), torch.tensor(list(map(len, texts)))


def keys(dataset, num_workers: int) -> list[list[int]]:
    context = "fork" if num_workers else None
    source = DataLoader(
        dataset,
        batch_size=None,
        sampler=range(len(dataset)),
        num_workers=num_workers,
        multiprocessing_context=context,
    )
    batches = list(source)
    assert not any(batch["status"].any() for batch in batches)
    return [batch["key"].tolist() for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_hostile_server_changes_no_key(num_workers, tmp_path, make_tar, make_pairs):
    """Drops, stalls, truncation, lies and 503s at random, and a cache of less than all shards."""
    folder = tmp_path / "source"
    folder.mkdir()
    counts = [3 + number % 4 for number in range(10)]
    for number, count in enumerate(counts):
        make_tar(folder / f"{number:05d}.tar", make_pairs(10 * number, count))
    manifest = index_shards([str(folder)], folder / "m.parquet")
    plan, steps = Plan(manifest.counts, seed=1, lanes=2, block=8), Steps([(15, 8)])

    def dataset(reader: ShardReader) -> StepDataset:
        samples = loader(manifest, EvalTransform())
        samples.reader = reader
        return StepDataset(plan, steps, samples, tokenize, 4)

    expected = keys(dataset(ShardReader(manifest.urls)), 0)
    sizes = manifest.num_bytes.tolist()
    with serve(folder, seed=num_workers, num_faults=3) as server:
        urls = [f"{server.url}/{os.path.basename(url)}" for url in manifest.urls]
        transport = Transport(num_attempts=30, stall_timeout=1.0, first_delay=0.01)
        store = ShardCache(tmp_path / "cache", 7 * max(sizes) + 8 * 4096, transport)
        prefetcher = Prefetcher(
            lambda step: plan.locate(steps.positions(step))[1],
            store,
            urls,
            sizes,
            total_steps=steps.total_steps,
            horizon=4,
            stride=max(1, num_workers),
        )
        reader = ShardReader(urls, store, max_open=4, num_bytes=sizes)
        assert keys(Prefetching(dataset(reader), prefetcher), num_workers) == expected
        assert sum(server.served[fault] for fault in FAULTS) == 3 * 10
