"""The data module: built from a run file, connected, resumed; its workers and signals."""

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from waiting import PATIENCE, until

from counterpoint.data.images.transforms import EvalTransform, TrainTransform
from counterpoint.data.module import PairsDataModule
from counterpoint.data.order.steps import Steps
from counterpoint.data.recipe import Source, Text
from counterpoint.data.shards.cache import ShardCache
from counterpoint.data.shards.index import index_shards
from counterpoint.data.shards.manifest import SCHEMA, Manifest
from counterpoint.data.sidecar import Sidecar, write_sidecar


@pytest.fixture
def manifest_file(shards, tmp_path):
    index_shards(shards, tmp_path / "m.parquet")
    return str(tmp_path / "m.parquet")


def connected(manifest_file, phases=((8, 6),), **arguments):
    data = PairsDataModule(manifest_file, **arguments)
    data.connect(Steps(phases), seed=1, image_size=16, context_length=8)
    return data


class Asked(ShardCache):
    """Notes the room that a run asks for."""

    def require(self, num_shards, num_bytes):
        self.needs = (num_shards, num_bytes)


def test_the_cache_needs_room_for_what_is_copied(manifest_file, shards, tmp_path):
    data = connected(manifest_file, cache=Asked(tmp_path / "cache", 1))
    data.check()
    assert not hasattr(data.cache, "needs"), "nothing is copied"
    # Two local shards, and 40 of another machine, 100 bytes each.
    columns = {
        "source": ["default"] * 42,
        "url": [*shards[:2], *(f"http://127.0.0.1:9/{n}.tar" for n in range(40))],
        "num_samples": [7, 5] + [8] * 40,
        "num_bytes": [*map(os.path.getsize, shards[:2])] + [100] * 40,
        "sha256": [""] * 42,
    }
    Manifest(pa.table(columns, schema=SCHEMA), tmp_path).save(tmp_path / "mixed.parquet")

    def needed(*phases):
        cache = Asked(tmp_path / "cache", 1)
        data = connected(str(tmp_path / "mixed.parquet"), phases, cache=cache, lanes=2, block=8)
        data.check()
        return cache.needs[1]

    small, large = needed((4, 2)), needed((4, 64))
    assert 100 < small < large <= 4000
    assert needed((4, 2), (4, 64)) == needed((4, 64), (4, 2)) == large
    # A phase without steps asks for nothing.
    assert needed((4, 2), (0, 64)) == small


def test_a_run_file_can_choose_every_part(manifest_file):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairsDataModule, "data")
    transforms = "counterpoint.data.images.transforms"
    config = parser.parse_object(
        {
            "data": {
                "manifest": manifest_file,
                "tokenizer": {"class_path": "counterpoint.data.text.tokenize.ClipTokenizer"},
                "train_transform": {
                    "class_path": f"{transforms}.TrainTransform",
                    "init_args": {"scale": [0.6, 1.0], "rotate": 10},
                },
                "eval_transform": {
                    "class_path": f"{transforms}.EvalTransform",
                    "init_args": {"resize": "squash"},
                },
                "caption": ["txt", "json:caption"],
            }
        }
    )
    data = parser.instantiate(config).data
    assert isinstance(data.train_transform, TrainTransform)
    assert (data.train_transform.scale, data.train_transform.rotate) == ((0.6, 1.0), 10)
    assert isinstance(data.eval_transform, EvalTransform) and data.eval_transform.resize == "squash"
    assert data.caption.fields == ("txt", "json:caption")
    assert data.tokenizer.vocab_size == 49408


def test_a_text_with_a_tokenizer_of_its_own(manifest_file):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairsDataModule, "data")
    own = {"tokenizer": {"class_path": "reversed_words.Reversed"}, "context_length": 12}
    texts = {"same": ["txt"], "theirs": own}
    data = parser.instantiate(
        parser.parse_object({"data": {"manifest": manifest_file, "texts": texts}})
    ).data
    data.connect(Steps(((8, 6),)), seed=1, image_size=16, context_length=8)
    batch = data.train_dataset()[0]
    assert torch.equal(batch["text.same"], batch["text"]) and batch["text"].shape == (6, 8)
    theirs, lengths = batch["text.theirs"], batch["text.theirs_length"]
    assert theirs.shape == (6, 12)
    for words, other, length, full in zip(
        batch["text"], theirs, lengths, batch["text_length"], strict=True
    ):
        assert length == full < 8
        assert torch.equal(other[1 : length - 1], words[1 : full - 1].flip(0))
    with pytest.raises(ValueError, match="context_length=0; give 1 or more"):
        Text(context_length=0)


class Recorder(LightningModule):
    """Trains one number and writes down what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, index):
        self.seen.append((batch["key"].tolist(), int(batch["image"].sum())))
        return self.weight * batch["image"].float().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(data, steps, **arguments):
    recorder = Recorder()
    trainer = Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        check_val_every_n_epoch=None,
    )
    trainer.fit(recorder, datamodule=data, **arguments)
    return trainer, recorder.seen


@pytest.mark.parametrize("num_workers", [0, 2])
def test_lightning_continues_at_the_stored_step(manifest_file, tmp_path, num_workers):
    _, whole = fit(connected(manifest_file, num_workers=num_workers), 8)
    assert len(whole) == 8
    trainer, head = fit(connected(manifest_file, num_workers=num_workers), 3)
    trainer.save_checkpoint(tmp_path / "at3.ckpt")
    resumed = connected(manifest_file, num_workers=2 - num_workers)
    _, tail = fit(resumed, 8, ckpt_path=tmp_path / "at3.ckpt")
    assert resumed.first_step == 3
    assert head + tail == whole


def test_replaced_samples_reach_the_ledger_once(manifest_file, shards):
    os.unlink(f"{shards[1]}.index")
    with open(shards[1], "r+b") as file:
        file.truncate(700)
    data = PairsDataModule(manifest_file, num_workers=2)
    data.steps, data.image_size, data.context_length = Steps([(7, 3)]), 16, 8
    fit(data, 7)
    data.ledger.merge(data.ledger.take_delta())
    assert data.ledger.samples == 21
    assert data.ledger.summary() == {"errors/shard_truncated/default": 5}


def test_another_manifest_is_refused_on_resume(manifest_file, make_tar, make_pairs, tmp_path):
    data = connected(manifest_file)
    state = data.state_dict()
    assert state["step"] == 0
    other = str(tmp_path / "other.parquet")
    index_shards([make_tar(tmp_path / "x.tar", make_pairs(0, 3))], other)
    with pytest.raises(ValueError, match="lists other samples than the run began with"):
        connected(other).load_state_dict(state)


def test_bad_input_is_refused_before_training(manifest_file, shards, tmp_path):
    with pytest.raises(ValueError, match=r"none.parquet' does not exist"):
        connected(str(tmp_path / "none.parquet")).check()
    with pytest.raises(ValueError, match="connect must be called"):
        PairsDataModule(manifest_file).train_dataloader()
    with pytest.raises(ValueError, match=r"batch_size=6 .* world size 4; use 4 or 8"):
        connected(manifest_file).train_dataset(rank=0, world_size=4)
    os.truncate(shards[0], 1000)
    with pytest.raises(ValueError, match="was cut off; fetch it again"):
        connected(manifest_file).check()
    for sources in ({"b": Source(share=1.0)}, {"default": Source(share=-1.0)}):
        with pytest.raises(ValueError, match=r"data.sources names b, which|must be 0 or more"):
            connected(manifest_file, sources=sources).check()
    # Captions are looked for in the sources that are read, and only there.
    index_shards(shards[1:], str(tmp_path / "b.parquet"), source="b")
    index_shards(shards[1:], str(tmp_path / "c.parquet"), source="c")
    manifests: Any = [str(tmp_path / "b.parquet"), str(tmp_path / "c.parquet")]
    misspelt = {"b": Source(share=1.0), "c": Source(share=0.0, caption=("text",))}
    connected(manifests, sources=misspelt).check()
    with pytest.raises(ValueError, match="source 'c' has no caption in text"):
        connected(manifests, sources=misspelt | {"c": Source(1.0, ("text",))}).check()
    both = {"sources": {"default": Source(share=1.0)}, "temperature": 2.0}
    with pytest.raises(ValueError, match="not both"):
        connected(manifest_file, **both).plan()


def pending(pid: int) -> bool:
    """Whether a signal has been sent to a process that has not reached it yet."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = [line.split()[1] for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    assert len(masks) == 2
    return any(int(mask, 16) for mask in masks)


def test_workers_outlive_a_stop_signal_but_not_their_loader(manifest_file):
    loader = connected(manifest_file, num_workers=2).train_dataloader()
    batches: Any = iter(loader.loader)
    first = [next(batches), next(batches)]  # one of each worker: both are ready
    workers = [worker.pid for worker in batches._workers]
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    # From another process, as a scheduler's signal comes; the loader's own must end them.
    os.system(f"kill -TERM {' '.join(map(str, workers))}")
    until(lambda: not any(map(pending, workers)))
    processes = list(batches._workers)
    assert [process.exitcode for process in processes] == [None, None]
    assert len([*first, *batches]) == 8
    assert [process.exitcode for process in processes] == [None, None]
    for process in processes:
        process.terminate()
        process.join(PATIENCE)
        assert process.exitcode == 0


def test_the_manifest_is_loaded_when_asked_for(tmp_path, manifest_file):
    data = PairsDataModule(str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match="does not exist"):
        _ = data.manifest
    assert PairsDataModule(manifest_file).manifest.num_samples == 21
    assert isinstance(PairsDataModule(manifest_file).manifest, Manifest)


def test_what_a_worker_refuses_arrives_without_its_stack_trace(manifest_file, tmp_path):
    # Stored augmentations of another transform: seen when the first batch is made.
    data = connected(manifest_file)
    keys = torch.cat([data.train_dataset()[step]["key"] for step in range(3)]).unique()
    for name in data.manifest.urls.names():
        write_sidecar(tmp_path, "default", name, {"key": keys, "drawn": torch.zeros(len(keys), 3)})
    sidecars = {"t": Sidecar(str(tmp_path), {"drawn": "drawn"})}
    data = connected(manifest_file, num_workers=1, sidecars=sidecars, same_as="t.drawn")
    with pytest.raises(ValueError, match=r"^the entry 't.drawn' has the shape \[3\]") as caught:
        next(iter(data.train_dataloader()))
    assert "Traceback" not in str(caught.value)
