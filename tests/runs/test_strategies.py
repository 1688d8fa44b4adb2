"""Whole runs with each strategy on two processes: one process's losses, and bit-equal resumes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.run.load import load_run
from counterpoint.models.weights import load_weights, read_weights
from counterpoint.train.checkpointing.checkpoint import load, newest

STRATEGIES = tuple(
    pytest.param(name, marks=pytest.mark.soak)
    for name in ("ddp", "fsdp2", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
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


def cut_back(run_dir: Path, copy: Path) -> Path:
    """A copy of a run as it was after the checkpoint of step 6."""
    shutil.copytree(run_dir, copy)
    for step in (12, 18, 20):
        (copy / "checkpoints" / f"step-{step:08d}.ckpt").unlink()
    return copy


@torch.no_grad()
def features(module) -> dict[str, torch.Tensor]:
    """Both sides of a few pairs."""
    draw = torch.Generator().manual_seed(0)
    length = torch.tensor([3, 5, 8])
    batch = {
        "image": torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=draw),
        "text": torch.randint(1, 99, (3, 8), generator=draw),
        "text_length": length,
        "key": torch.arange(3),
    }
    return module.model(batch, ("image", "text", "logit_scale"))


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

    file = tmp_path / "weights.safetensors"
    assert main(["export", str(run_dir), str(file)]) == 0
    trained = load_run(run_dir)
    exported = load_run(one)
    load_weights(exported.model, read_weights(file), str(file))
    for name, value in features(trained).items():
        assert torch.equal(features(exported)[name], value), name

    again = cut_back(run_dir, tmp_path / "again")
    fit(["--resume", str(again)], 2, tmp_path / "again.log")
    assert rows(again) == got
    other = load(newest(again))
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(flat(last[part])), dict(flat(other[part]))
        assert a.keys() == b.keys() and a
        assert [key for key in a if not torch.equal(a[key], b[key])] == []


@pytest.mark.soak
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("ddp", "fsdp2"),
        ("fsdp2", "ddp"),
        ("ddp", "zero3"),
        ("zero3", "fsdp2"),
        ("zero2", "zero1"),
        ("zero1", "ddp"),
        ("zero3", "zero2_offload"),
        ("zero2_offload", "fsdp2"),
    ],
)
def test_resumed_in_another_strategy(tmp_path, arguments, one, first, second):
    run_dir = cut_back(train(arguments, tmp_path / "run", first, 2), tmp_path / "again")
    fit(["--resume", str(run_dir), f"--trainer.strategy={second}"], 2, tmp_path / "again.log")
    want, got = rows(one), rows(run_dir)
    for key, values in want.items():
        assert got[key] == pytest.approx(values, rel=1e-5), key
    last, same = load(newest(run_dir)), load(newest(one))
    assert last["global_step"] == same["global_step"] == STEPS
    for name, value in same["state_dict"].items():
        torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("strategy", "world_size", "chunks"), [("auto", 1, 3), ("ddp", 2, 1), ("fsdp2", 2, 2)]
)
def test_sampled_curvature_is_that_of_one_process(
    tmp_path, arguments, strategy, world_size, chunks
):
    want, got = (
        train(sophia(arguments, tmp_path), tmp_path / name, how, size, f"--model.chunks={n}")
        for name, how, size, n in (("one", "auto", 1, 1), ("got", strategy, world_size, chunks))
    )
    a, b = rows(want), rows(got)
    for key in ("loss", "grad_norm", "logit_scale"):
        assert b[key] == pytest.approx(a[key], rel=1e-4), key
    first, second = (load(newest(run))["optimizer_states"][0]["state"] for run in (want, got))
    for number, state in first.items():
        torch.testing.assert_close(
            second[number]["hessian"], state["hessian"], rtol=1e-2, atol=1e-6, msg=str(number)
        )


def sophia(arguments, folder: Path) -> list[str]:
    """The same run with Sophia-G."""
    values = yaml.safe_load(Path(arguments[1]).read_text())
    values["optim"] = {"class_path": "counterpoint.train.optim.sophia.SophiaG"}
    values["optim"]["init_args"] = {"every": 1}
    folder = folder / "sophia"
    folder.mkdir(exist_ok=True)
    return ["--config", str(write_config(folder, values))]
