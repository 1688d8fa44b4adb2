"""Several streams in one step: each is what it would be alone, under its name."""

from itertools import product

import pytest
import torch
from tiny import SENTENCES, write_shards, write_texts

from counterpoint.data import render
from counterpoint.data.dataset import StepSampler, join
from counterpoint.data.images.transforms import TrainTransform
from counterpoint.data.module import DataStream, PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import View
from counterpoint.data.refusals import Refusal
from counterpoint.data.shards.index import index_shards
from counterpoint.data.sidecar import Sidecar

PHASES = ((3, 6), (4, 4))
NEEDS = ("image", "text", "sentences/text", "sentences/text.positive")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    index_shards([str(p) for p in write_shards(folder / "pairs")], folder / "pairs.parquet")
    texts = [str(p) for p in write_texts(folder / "texts")]
    index_shards(texts, folder / "texts.parquet", caption=["json:anchor"], images=())
    return folder


def texts_of(folder, **choices):
    choices = SENTENCES | choices
    return DataStream(str(folder / "texts.parquet"), **choices)


def connected(folder, needs=NEEDS, **choices):
    arguments = {"num_workers": 0, "lanes": 2, "block": 8} | choices
    data = PairsDataModule(str(folder / "pairs.parquet"), **arguments)
    data.check_needs(needs)
    data.connect(Steps(PHASES), seed=1, image_size=16, context_length=8)
    return data


def batches(data, rank=0, world_size=1):
    """The whole run's batches of a rank, through the loader's parts."""
    data.rank_and_world_size = lambda: (rank, world_size)
    loader = data.train_dataloader()
    assert len(loader) == sum(steps for steps, _ in PHASES)
    return [join(parts) for parts in loader]


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert torch.equal(got[name], values), name


def test_each_stream_is_what_it_is_alone(folder):
    stream = texts_of(folder, batch_size=10)
    together = batches(connected(folder, streams={"sentences": stream}))
    pairs = batches(connected(folder, ("image", "text")))
    for batch, own in zip(together, pairs, strict=True):
        main = {name: rows for name, rows in batch.items() if "/" not in name}
        assert_same(main, own)
        assert len(batch["sentences/text"]) == 10
        assert set(batch) - set(main) == {
            f"sentences/{name}"
            for name in (
                *("text", "text_length", "key", "status", "source", "shard"),
                *("text.positive", "text.positive_length", "text.positive.present"),
                *("text.negative", "text.negative_length", "text.negative.present"),
            )
        }
    # Two epochs of 26 and a part of the third: each sample comes in each of them.
    keys = torch.cat([batch["sentences/key"] for batch in together])
    assert all(len(set(keys[i : i + 26].tolist())) == 26 for i in (0, 26))
    assert not any((batch["sentences/status"] != 0).any() for batch in together)


@pytest.mark.parametrize("turns", [None, {"main": 2, "sentences": 1}, {"sentences": 1, "main": 1}])
def test_ranks_share_every_streams_batch(folder, turns):
    def made(rank=0, world_size=1):
        stream = texts_of(folder, batch_size=8)
        data = connected(folder, streams={"sentences": stream}, turns=turns)
        return batches(data, rank, world_size)

    whole, halves = made(), (made(0, 2), made(1, 2))
    for step, batch in enumerate(whole):
        for name in ("key", "sentences/key"):
            parts = [half[step][name] for half in halves if name in half[step]]
            assert (name in batch) == (len(parts) == 2)
            if parts:
                assert len(parts[0]) == len(parts[1])
                assert set(torch.cat(parts).tolist()) == set(batch[name].tolist())
    if turns:
        cycle = ["main"] * turns["main"] + ["sentences"]  # however they are listed
        for step, batch in enumerate(whole):
            there = cycle[step % len(cycle)]
            assert ("key" in batch, "sentences/key" in batch) == (there == "main", there != "main")


def test_parts_of_all_streams_come_once(folder):
    data = connected(folder, streams={"sentences": texts_of(folder)})
    loader = data.train_dataloader()
    for dataset in loader.dataset.datasets.values():
        dataset.part_rows = 4
    parts = list(StepSampler(loader.dataset))
    assert parts == [*product(range(3), range(4)), *product(range(3, 7), range(2))]
    whole = batches(connected(folder, streams={"sentences": texts_of(folder)}))
    for step, batch in enumerate(whole):
        assert_same(join([loader.dataset[at] for at in parts if at[0] == step]), batch)
        assert_same(loader.dataset[step], batch)


def test_a_stream_whose_images_nobody_reads_opens_none(folder, monkeypatch):
    def opened(data):
        raise AssertionError("an image was opened")

    batch = batches(connected(folder, ("image", "text")))[0]
    monkeypatch.setattr(render, "opened", opened)
    texts = batches(connected(folder, ("text", "logit_scale")))[0]
    assert "image" not in texts and "image.augmentation" not in texts
    assert torch.equal(texts["text"], batch["text"]) and not texts["status"].any()
    with pytest.raises(AssertionError, match="an image was opened"):
        batches(connected(folder, ("text", "teacher.big.image")))


def test_another_order_than_that_of_the_same_shards(folder):
    stream = DataStream(str(folder / "pairs.parquet"), lanes=2, block=8)
    data = connected(folder, ("image", "again/text"), streams={"again": stream})
    first = [batches(data)[0][name].tolist() for name in ("key", "again/key")]
    assert first[0] != first[1]


def test_the_stream_reads_with_the_tokenizer_of_the_pairs(folder):
    data = connected(folder, streams={"sentences": texts_of(folder)})
    assert data.streams["sentences"].tokenizer is data.tokenizer


def test_resumed_with_what_was_skipped(folder):
    def made():
        turns = {"main": 2, "sentences": 1}
        return connected(folder, streams={"sentences": texts_of(folder)}, turns=turns)

    data = made()
    whole = batches(data)
    state = data.state_dict()
    # Steps 2, 3 and 4 are of the sentences and twice of the pairs.
    assert data.pass_over(state, 2, 5) == 6 + 2 * 4
    state["step"] = 2
    resumed = made()
    resumed.load_state_dict(state)
    loader = resumed.train_dataloader()
    rest = [join(parts) for parts in loader]
    assert len(rest) == 5
    assert torch.equal(rest[0]["sentences/key"][:4], whole[5]["sentences/key"])
    assert torch.equal(rest[1]["key"], whole[6]["key"])


def test_back_into_a_stage_without_the_stream(folder):
    state = connected(folder, ("image", "text")).state_dict()
    data = connected(folder, streams={"sentences": texts_of(folder)})
    assert data.pass_over(state, 1, 3) == 4 * 6
    data.go_on(1, state)
    assert data.steps.left_out == data.streams["sentences"].steps.left_out == [(1, 12)]


def test_a_full_disk_is_a_sentence_from_a_worker_as_well(folder, monkeypatch):
    class Full:
        def at(self, step):
            raise ValueError(f"no space left at step {step}")

    data = connected(folder, streams={"sentences": texts_of(folder)})
    loader = data.train_dataloader()
    loader.dataset.datasets["sentences"].prefetcher = Full()
    monkeypatch.setattr(torch.utils.data, "get_worker_info", object)
    part = loader.dataset[2, 0]
    assert isinstance(part, Refusal) and part.message == "no space left at step 2"


def test_the_order_in_which_streams_are_listed_is_of_no_account(folder):
    def made(names):
        streams = {name: texts_of(folder) for name in names}
        turns = {name: 1 for name in (*names, "main")}
        return connected(folder, ("image", "a/text", "b/text"), streams=streams, turns=turns)

    one, other = made("ab"), made("ba")
    for batch, same in zip(batches(one), batches(other), strict=True):
        assert_same(batch, same)
    other.load_state_dict(one.state_dict())


def test_other_data_of_a_stream_are_noticed(folder):
    data = connected(folder, streams={"sentences": texts_of(folder)})
    state = data.state_dict()
    with pytest.raises(ValueError, match="lists other samples"):
        other = DataStream(str(folder / "pairs.parquet"))
        connected(folder, streams={"sentences": other}).load_state_dict(state)


def test_mistakes(folder):
    stream = texts_of(folder)

    def refused(message, *needs, **choices):
        with pytest.raises(ValueError, match=message):
            connected(folder, needs or NEEDS, **choices)

    refused("objective.streams names 'sentences', and data has the streams main")
    refused("no term reads data.streams.sentences", "image", streams={"sentences": stream})
    refused("the stream 'main' needs another name", streams={"main": stream})
    refused("without dots and slashes", streams={"a.b": stream})
    refused("data.turns has words: 1; give", streams={"sentences": stream}, turns={"words": 1})
    refused("data.turns has main: 0", streams={"sentences": stream}, turns={"main": 0})
    # Entries of such names would be those of a stream.
    refused("data.texts has the name 'a/b'", texts={"a/b": ["txt"]})
    refused("data.views has the name 'a/b'", views={"a/b": View(TrainTransform())})
    sidecar = Sidecar(str(folder), {"text": "text"})
    refused("data.sidecars has the name 'a/b'", sidecars={"a/b": sidecar})
    with pytest.raises(ValueError, match="batch_size=0"):
        texts_of(folder, batch_size=0)
    data = connected(folder, streams={"sentences": texts_of(folder, caption=["json:nothing"])})
    with pytest.raises(ValueError, match=r"data\.streams\.sentences: the source 'default' has no"):
        data.check()
    with pytest.raises(ValueError, match="has no images"):
        index_shards([str(folder / "texts")], folder / "x.parquet", caption=["json:anchor"])


def test_images_of_texts_alone_are_refused(folder):
    stream = texts_of(folder)
    data = connected(folder, ("text", "sentences/image"), streams={"sentences": stream})
    with pytest.raises(ValueError, match=r"data\.streams\.sentences: a term reads images, and the"):
        data.check()
    connected(folder, streams={"sentences": texts_of(folder)}).check()
