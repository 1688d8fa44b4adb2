"""P3: a run that is killed and resumed is bit-equal to one that was not."""

import json
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
from processes import Run, fit
from progress import fence
from recorder import read
from tiny import config, write_config, write_shards
from waiting import until

from counterpoint.data.shards.index import index_shards
from counterpoint.train.checkpointing.checkpoint import load, newest

STEPS = 24


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, manifest):
    """The folder of a run on two ranks that was not killed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    fit(run_file(folder, manifest, "32-true"), 2, folder / "log")
    return folder


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory, manifest):
    """The folder of one that was, and a copy: the run's callbacks know the folder by its path."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    arguments = run_file(folder, manifest, "32-true")
    step = random.Random("32-true2").randrange(13, STEPS - 3)
    fence(folder / "at", step + 2)
    kill_at(Run(["fit", *arguments], 2, folder / "log"), folder, step)
    fence(folder / "at", None)
    shutil.copytree(folder, folder.with_name("copy"))
    return folder


@pytest.fixture
def killed(killed_once):
    """The folder as it was when the run was killed."""
    shutil.rmtree(killed_once)
    shutil.copytree(killed_once.with_name("copy"), killed_once)
    return killed_once


def run_file(folder: Path, manifest: Path, precision: str, **changes) -> list[str]:
    """A run whose steps record their keys; returns the arguments of `fit`."""
    folder.mkdir()
    values = config(manifest, steps=STEPS) | changes
    keys = {"class_path": "recorder.Keys", "init_args": {"path": str(folder / "keys.txt")}}
    progress = {"class_path": "progress.Progress", "init_args": {"path": str(folder / "at")}}
    values["trainer"] |= {"precision": precision, "callbacks": [keys, progress]}
    path = write_config(folder, values)
    return ["--config", str(path), "--run_dir", str(folder / "run")]


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def flat(state, path=""):
    """Every tensor in nested containers, by path."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, dict):
        for key, value in state.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(state, (list, tuple)):
        yield from flat(dict(enumerate(state)), path)


def assert_bit_equal(one: Path, other: Path) -> None:
    a, b = load(newest(one)), load(newest(other))
    assert a["global_step"] == b["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states"):
        want, got = dict(flat(a[part])), dict(flat(b[part]))
        assert want.keys() == got.keys() and want
        assert [key for key in want if not torch.equal(want[key], got[key])] == []


def begun(run: Run, folder: Path, step: int) -> None:
    """Waits until some rank has begun `step`."""

    def seen() -> bool:
        path = folder / "keys.txt"
        return path.exists() and any(s >= step for s, _ in read(path))

    until(seen, run.alive, lambda: run.text()[-3000:])


def kill_at(run: Run, folder: Path, step: int) -> None:
    """Kill -9 to all ranks once some rank has begun `step`."""
    begun(run, folder, step)
    run.signal(signal.SIGKILL)
    assert set(run.wait()) == {-9}


def assert_same_run(killed: Path, whole: Path, world_size: int) -> None:
    """Samples of each step and rank, losses, and what the last checkpoint holds."""
    want, got = read(whole / "keys.txt"), read(killed / "keys.txt")
    assert len(want) == STEPS * world_size
    assert got == want
    assert losses(killed / "run") == losses(whole / "run")
    assert len(losses(whole / "run")) == STEPS
    assert_bit_equal(whole / "run", killed / "run")


def test_killed_and_resumed(whole, killed):
    assert 6 < max(step for step, _ in read(killed / "keys.txt")) < STEPS - 1
    fit(["--resume", str(killed / "run")], 2, killed / "log")
    assert_same_run(killed, whole, 2)


@pytest.mark.soak
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_three_times(tmp_path, manifest, precision, world_size):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    fit(run_file(whole, manifest, precision), world_size, whole / "log")

    arguments = run_file(killed, manifest, precision)
    steps = sorted(random.Random(f"{precision}{world_size}").sample(range(7, STEPS - 1), 3))
    command = ["fit", *arguments]
    for step in steps:
        fence(killed / "at", step + 2)
        kill_at(Run(command, world_size, killed / "log"), killed, step)
        command = ["fit", "--resume", str(killed / "run")]
    fence(killed / "at", None)
    run = Run(command, world_size, killed / "log")
    assert run.wait() == [0] * world_size, run.text()[-3000:]

    assert_same_run(killed, whole, world_size)


@pytest.mark.soak
def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path, manifest):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    fit(run_file(whole, manifest, "32-true"), 2, whole / "log")
    arguments = run_file(stopped, manifest, "32-true")
    fence(stopped / "at", 16)
    run = Run(["fit", *arguments], 2, stopped / "log")
    begun(run, stopped, 10)
    run.signal(signal.SIGTERM, ranks=[1])
    fence(stopped / "at", None)
    assert run.wait() == [128 + signal.SIGTERM] * 2, run.text()[-3000:]
    assert "continue with: counterpoint fit --resume" in run.text()
    step = load(newest(stopped / "run"))["global_step"]
    assert 10 <= step < STEPS
    fit(["--resume", str(stopped / "run")], 2, stopped / "log")
    assert losses(stopped / "run") == losses(whole / "run")
    assert_bit_equal(whole / "run", stopped / "run")


def test_another_world_size_sees_the_same_global_batches(whole, killed):
    cut = load(newest(killed / "run"))["global_step"]
    fit(["--resume", str(killed / "run")], 1, killed / "log")

    def batches(folder):
        found = {}
        for (step, _), records in read(folder / "keys.txt").items():
            keys = [k for record in records for k in record.split(" ")[0].split(",")]
            found.setdefault(step, set()).update(keys)
        return found

    assert 6 <= cut < STEPS
    assert batches(killed) == batches(whole)
