"""Whole runs with each strategy on two processes: one process's losses, and bit-equal resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.index import index_shards
from counterpoint.train.checkpoint import load, newest

STRATEGIES = (
    "zero3",
    *(pytest.param(name, marks=pytest.mark.soak) for name in ("ddp", "fsdp2", "zero1", "zero2")),
)
STEPS = 20


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """A run without dropout, which is another one on another number of processes."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))
    values = config(path, steps=STEPS)
    values["checkpoint"]["keep"] = 9
    values["model"]["text"]["init_args"]["dropout"] = 0.0
    sizes = values["model"]["image"]["init_args"]["model_args"]
    values["model"]["image"]["init_args"]["model_args"] = {
        key: 0.0 if key.endswith("_rate") else value for key, value in sizes.items()
    }
    return ["--config", str(write_config(folder, values))]


def train(arguments, run_dir: Path, strategy: str, world_size: int, *options: str) -> Path:
    """Trains to the end; returns the run's folder."""
    words = [*arguments, "--run_dir", str(run_dir), f"--trainer.strategy={strategy}", *options]
    fit(words, world_size, run_dir.with_suffix(".log"))
    return run_dir


def rows(run_dir: Path) -> dict[str, list[float]]:
    """The measured columns of the metrics."""
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    keys = ("loss", "grad_norm", "logit_scale", "flops_per_pair")
    return {key: [row[key] for row in found] for key in keys}


def flat(state, path=""):
    """Every tensor in nested containers, by path."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from flat(value, f"{path}/{key}")


@pytest.fixture(scope="module")
def one(arguments, tmp_path_factory):
    """The same run in one process."""
    return train(arguments, tmp_path_factory.mktemp("one") / "run", "auto", 1)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_checkpoints_and_resume(tmp_path, arguments, one, strategy):
    run_dir = train(arguments, tmp_path / "run", strategy, 2)
    want, got = rows(one), rows(run_dir)
    assert len(got["loss"]) == STEPS
    for key, values in want.items():
        assert got[key] == pytest.approx(values, rel=1e-5), key

    last, same = load(newest(run_dir)), load(newest(one))
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(flat(last[part])), dict(flat(same[part]))
        assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    for name, value in same["state_dict"].items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-3, atol=1e-4, msg=name)

    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    for step in (12, 18, 20):
        (again / "checkpoints" / f"step-{step:08d}.ckpt").unlink()
    fit(["--resume", str(again)], 2, tmp_path / "again.log")
    assert rows(again) == got
    other = load(newest(again))
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(flat(last[part])), dict(flat(other[part]))
        assert a.keys() == b.keys() and a
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
