"""Which checkpoints stay, and what must be counted before one is written."""

from types import SimpleNamespace

import pytest
import torch
from small_run import module

from counterpoint.data.errors import ErrorLedger
from counterpoint.train.callbacks.sample_errors import CountErrors
from counterpoint.train.checkpointing.checkpoint import Checkpoints, checkpoints_in, step_of
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


@pytest.mark.parametrize(("kind", "merged"), [(Checkpoints, 0), (RewindingCheckpoints, 3)])
def test_samples_are_added_up_for_the_extra_checkpoint_of_step_one(tmp_path, kind, merged):
    ledger = ErrorLedger(["default"], max_error_rate=0.0)
    zeros = torch.zeros(3, dtype=torch.int64)
    ledger.update({"status": zeros, "source": zeros, "shard": zeros})
    trainer = SimpleNamespace(
        global_step=1, log_every_n_steps=5, max_steps=9, should_stop=False, is_global_zero=False
    )
    trainer.datamodule = SimpleNamespace(ledger=ledger)
    count = CountErrors(kind(tmp_path, 4, keep=9), tmp_path / "skipped.json")
    count.on_train_start(trainer, None)
    count.on_train_batch_end(trainer, None)
    assert ledger.samples == merged
