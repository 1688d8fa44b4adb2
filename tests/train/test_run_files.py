"""The files of a run: metrics that are cut on resume, checkpoints that are whole or absent."""

import json
from unittest.mock import Mock

import pytest
import torch

from counterpoint.train.callbacks.metrics import MetricsFile, memory, read_rows
from counterpoint.train.checkpointing.checkpoint import AtomicCheckpointIO, load, newest, step_of
from counterpoint.train.distributed import numbers_of_ranks


def test_rows_after_the_resumed_step_are_cut_and_the_clock_goes_on(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": s, "wall": 10.0 * s, "loss": 1.0 / s} for s in range(1, 6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "wa')
    file = MetricsFile(path, resume_step=3)
    assert read_rows(path) == rows[:3]
    file.log_row({"loss": 0.5}, 4)
    assert read_rows(path)[-1]["step"] == 4
    assert read_rows(path)[-1]["wall"] >= 30.0


def test_what_others_log_goes_into_the_next_row(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=None)
    file.log_metrics({"theirs": 1.0, "epoch": 0}, 3)  # Lightning counts from 0
    assert read_rows(file.path) == []
    file.log_row({"loss": 0.5}, 4)
    file.log_row({"suite/task/top1": 0.2}, 4)
    file.log_metrics({"theirs": 2.0}, 4)
    file.finalize("success")
    file.finalize("success")
    rows = [{k: v for k, v in row.items() if k != "wall"} for row in read_rows(file.path)]
    assert rows == [
        {"step": 4, "theirs": 1.0, "loss": 0.5},
        {"step": 4, "suite/task/top1": 0.2},
        {"step": 4, "theirs": 2.0},
    ]
    assert file.steps == {"theirs": 4, "loss": 4, "suite/task/top1": 4}


def test_a_new_run_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "wall": 2}\n')
    MetricsFile(path, resume_step=None)
    assert read_rows(path) == []


def numbers_on(rank, world_size):
    return numbers_of_ranks([torch.tensor(float(rank)), 2.5], torch.device("cpu"))


def test_numbers_of_all_ranks_are_gathered(gloo):
    for table in [*gloo(3, numbers_on), numbers_of_ranks([2, 2.5], torch.device("cpu"))]:
        assert table.tolist() == [[0.0, 2.5], [1.0, 2.5], [2.0, 2.5]][-len(table) :]


def test_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**29)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 2**31)
    assert memory(torch.device("cuda")) == {"peak_memory_gib": 1.5, "peak_reserved_gib": 2.0}
    held = torch.ones(1 << 26)  # 256 MiB that are resident, since they were written
    assert memory(torch.device("cpu"))["peak_memory_gib"] >= held.nbytes / 2**30


def test_a_failed_write_leaves_the_last_checkpoint_alone(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    path = tmp_path / "checkpoints" / "step-00000005.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)

    def half(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    io.save_checkpoint({"x": torch.zeros(3)}, path)
    assert "No space" in str(io.failure)
    assert torch.equal(load(path)["x"], torch.ones(3))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_is_told_to_all_ranks_whatever_failed(tmp_path, monkeypatch):
    io = AtomicCheckpointIO()
    path = tmp_path / "step-00000005.ckpt"
    for error in (RuntimeError("unexpected pos 64 vs 0"), TypeError("cannot pickle this")):
        monkeypatch.setattr(torch, "save", Mock(side_effect=error))
        io.save_checkpoint({"x": torch.ones(3)}, path)  # raised here, it would leave them waiting
        assert str(io.failure) == f"{type(error).__name__}: {error}"
    assert list(tmp_path.iterdir()) == []


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    assert newest(tmp_path) is None
    for name in ("step-00000009.ckpt", "step-00000100.ckpt", "step-00000200.part", "other.ckpt"):
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / name).touch()
    found = newest(tmp_path)
    assert found is not None and step_of(found) == 100


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()
