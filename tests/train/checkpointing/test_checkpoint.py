"""Which checkpoints stay, and what must be counted before one is written."""

import zipfile
from types import SimpleNamespace

import pytest
import torch
from small_run import module

from counterpoint.data.errors import ErrorLedger
from counterpoint.models.weights import read_weights
from counterpoint.train.callbacks.sample_errors import CountErrors
from counterpoint.train.checkpointing.checkpoint import (
    Checkpoints,
    checkpoints_in,
    load,
    newest_whole,
    step_of,
    write,
)
from counterpoint.train.checkpointing.rewind import RewindingCheckpoints
from counterpoint.train.spike_guard import SpikeGuard, Spikes


@pytest.fixture
def files_after(tmp_path):
    """Saves at some steps, every fourth of which is regular; returns the steps of what stays."""

    def call(keep: int, *steps: int) -> list[int]:
        saving = Checkpoints(tmp_path / "checkpoints", every_n_steps=4, keep=keep)
        saving.folder.mkdir(exist_ok=True)
        trainer = SimpleNamespace(
            save_checkpoint=lambda path, weights_only: path.touch(),
            strategy=SimpleNamespace(checkpoint_io=None),
            is_global_zero=True,
        )
        saving.on_train_start(trainer, None)
        for step in steps:
            saving.save(trainer, step, last=False)
        return sorted(map(step_of, checkpoints_in(tmp_path)))

    return call


def test_what_a_stop_leaves_takes_no_other_files_place(files_after):
    assert files_after(2, 4, 8, 9) == [4, 8, 9]
    assert files_after(2, 11) == [4, 8, 11]
    assert files_after(2, 12) == [8, 12]


def test_to_keep_none_is_to_keep_all(files_after):
    assert files_after(0, 4, 8, 9, 12) == [4, 8, 9, 12]


def test_all_files_reach_back_far_enough_for_a_rewind(tmp_path):
    made = module(1)
    made.guard = SpikeGuard(spikes=Spikes(then="rewind"))
    with pytest.raises(ValueError, match="2 checkpoints, one every 1 steps"):
        RewindingCheckpoints(tmp_path, 1, keep=2).on_train_start(None, made)
    RewindingCheckpoints(tmp_path, 1, keep=0).on_train_start(None, made)


def test_a_file_that_opens_and_does_not_load_is_passed_over(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    good, no_checkpoint, packed = (folder / f"step-0000000{i}.ckpt" for i in (1, 2, 3))
    write({"a": torch.ones(3)}, good)
    with zipfile.ZipFile(no_checkpoint, "w") as file:
        file.writestr("archive/version", "3")
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    path, damaged = newest_whole(tmp_path)
    assert path == good and set(damaged) == {no_checkpoint, packed}
    # A few bytes could unpack to any number of them.
    assert "is compressed, which torch never does" in damaged[packed]
    for read in (load, read_weights):
        with pytest.raises(ValueError, match="cannot be read"):
            read(packed)


def test_a_disk_that_is_full_as_long_as_the_part_is_there(tmp_path, monkeypatch):
    def save(content, file):
        file.write(b"a part")
        raise RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 68 vs 60")

    def free(folder):
        is_full = any(".part-" in path.name for path in tmp_path.iterdir())
        return SimpleNamespace(f_bavail=0 if is_full else 1 << 40, f_frsize=4096)

    monkeypatch.setattr(torch, "save", save)
    monkeypatch.setattr("os.statvfs", free)
    with pytest.raises(OSError, match="No space left on device"):
        write({}, tmp_path / "step-00000001.ckpt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "merged"), [(Checkpoints, 0), (RewindingCheckpoints, 3)])
def test_samples_are_added_up_for_the_extra_checkpoint_of_step_one(tmp_path, kind, merged):
    ledger = ErrorLedger(["default"], max_error_rate=0.0)
    zeros = torch.zeros(3, dtype=torch.int64)
    ledger.update({"status": zeros, "source": zeros, "shard": zeros})
    trainer = SimpleNamespace(
        global_step=1, log_every_n_steps=5, max_steps=9, should_stop=False, is_global_zero=False
    )
    trainer.datamodule = SimpleNamespace(every_stream={"": SimpleNamespace(ledger=ledger)})
    count = CountErrors(kind(tmp_path, 4, keep=9), tmp_path / "skipped.json")
    count.on_train_start(trainer, None)
    count.on_train_batch_end(trainer, None)
    assert ledger.samples == merged
