"""Batches of weights drawn anew: the same from any worker, rank, restart; stores are complete."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from torch.utils.data import DataLoader

from counterpoint.data.dataset import StepLoader, StepSampler, join
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.selection import Redrawn
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import Source
from counterpoint.data.shards.index import index_shards
from counterpoint.data.workers import start_worker

COUNTS = (7, 5, 9)


@pytest.fixture
def pool(shards, tmp_path):
    """The manifest, and a keep-list of 18 samples: 16 an epoch of `a` and 4 of `b`."""
    path = str(tmp_path / "m.parquet")
    manifest = index_shards({"a": [shards[0], shards[2]], "b": [shards[1]]}, path)
    shard, index = zip(
        *((n, i) for n, count in enumerate(COUNTS) for i in range(count - 1)), strict=True
    )
    weight = [(0.6, 0.9, 1.5)[n] for n in shard]
    columns = {"shard": [f"{n:05d}.tar" for n in shard], "index": index, "weight": weight}
    columns["key"] = [1000 * n + i for n, i in zip(shard, index, strict=True)]
    pq.write_table(pa.table(columns), tmp_path / "keep.parquet")
    return path, manifest, str(tmp_path / "keep.parquet")


def connected(pool, phases=((12, 6),), **more):
    path, _, keep = pool
    data = PairsDataModule(
        path, keep_lists=(keep,), keep_weights=Redrawn(), lanes=4, block=8, **more
    )
    data.connect(Steps(phases), seed=1, image_size=16, context_length=8)
    return data


SHARES = {"a": Source(share=0.5), "b": Source(share=0.5)}


@pytest.mark.parametrize("sources", [None, SHARES])
def test_ranks_workers_and_restarts_change_nothing(pool, sources):
    whole = connected(pool, sources=sources).train_dataset()
    batches = [whole[step] for step in range(12)]
    assert len({tuple(batch["key"].tolist()) for batch in batches}) == 12
    assert all("weight" not in batch and not batch["status"].any() for batch in batches)
    for world_size in (2, 3):
        ranks = [
            connected(pool, sources=sources).train_dataset(r, world_size) for r in range(world_size)
        ]
        for step in range(12):
            keys = [key for rank in ranks for key in rank[step]["key"].tolist()]
            assert sorted(keys) == sorted(batches[step]["key"].tolist())
    for first_step, num_workers in ((0, 2), (7, 0), (7, 1)):
        dataset = connected(pool, sources=sources).train_dataset()
        sampler = StepSampler(dataset, first_step)
        options = {"worker_init_fn": start_worker} if num_workers else {}
        loader = DataLoader(dataset, None, sampler=sampler, num_workers=num_workers, **options)
        for batch, expected in zip(
            map(join, StepLoader(loader, dataset, first_step)), batches[first_step:], strict=True
        ):
            assert batch.keys() == expected.keys()
            assert all((batch[name] == expected[name]).all() for name in batch)


def test_an_epoch_is_what_is_drawn_and_its_size_is_known(pool):
    data = connected(pool)
    assert data.epoch_size == round(6 * 0.6 + 8 * 1.5) + round(4 * 0.9) == 20
    dataset = connected(pool, phases=((6, 10),)).train_dataset()
    keys = [key for step in range(6) for key in dataset[step]["key"].tolist()]
    epochs = [Counter(keys[20 * n : 20 * n + 20]) for n in range(3)]
    for epoch in epochs:
        assert max(epoch.values()) == 2, "1.5 is one or two"
        twice = sum(count == 2 for count in epoch.values())
        assert len(epoch) == 20 - twice
    assert epochs[0] != epochs[1] != epochs[2]
    assert data.fingerprint == connected(pool).fingerprint
    state = data.state_dict()
    plain = PairsDataModule(pool[0], keep_lists=(pool[2],))
    with pytest.raises(ValueError, match="lists other samples than the run began with"):
        plain.load_state_dict(state)


def test_temperature_counts_what_comes(pool):
    plan = connected(pool, temperature=1.0).plan()
    sources = pool[1].source_ids[plan.locate(np.arange(2000))[1]]
    assert np.bincount(sources).tolist() == pytest.approx([1600, 400], abs=3)


def test_replacements_come_in_the_same_epoch(pool):
    data = connected(pool)
    loader = data.train_dataset().loader
    seen = set()
    for epoch in range(8):
        counts = loader.counts.at(epoch).tolist()
        found = list(loader.candidates(epoch, 0, 0))
        assert found[: counts[0]] == [(0, ordinal) for ordinal in range(counts[0])]
        # The next shard of the source, not that of the other one.
        assert found[counts[0] :] == [(1, ordinal) for ordinal in range(4)]
        seen.add(counts[0])
        for place in found:
            loader.decode(epoch, *place)
    assert len(seen) > 1


def test_a_store_has_every_listed_sample(pool):
    loader = connected(pool).train_dataset().loader.listed()
    counts = loader.counts.at(0).tolist()
    assert counts == [6, 8, 4] == loader.counts.at(5).tolist()
    places = [(3, shard, n) for shard, count in enumerate(counts) for n in range(count)]
    assert len(set(loader.load(places)[0]["key"].tolist())) == 18
