"""Faults of machines: at most a checkpoint interval is lost, and the run ends as if unharmed."""

import json
import os
import random
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from agents import Node, until
from processes import Run
from progress import fence, where
from tiny import config, write_config, write_shards
from waiting import until as waited

from counterpoint.data.shards.index import index_shards
from counterpoint.train.checkpointing.checkpoint import (
    checkpoints_in,
    load,
    newest,
    newest_whole,
    step_of,
)

STEPS, EVERY = 40, 6


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a run file whose ranks say where they are; returns the arguments of `fit`."""
    folder = tmp_path_factory.mktemp("pairs")
    manifest = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(manifest))

    def call(folder: Path, steps: int = STEPS, hang=None, stopped=False, **changes) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        values = config(manifest, steps=steps) | changes
        progress = {"path": str(folder / "at"), "hang": hang, "stopped": stopped}
        values["trainer"] |= {
            "logger": False,
            "callbacks": [{"class_path": "progress.Progress", "init_args": progress}],
        }
        return ["--config", str(write_config(folder, values)), "--run_dir", str(folder / "run")]

    return call


@pytest.fixture(scope="module")
def whole(written, tmp_path_factory):
    """The run to which nothing happens, on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    run = Run(["fit", *written(folder)], 2, folder / "log")
    assert run.wait() == [0, 0], run.text()[-3000:]
    return folder / "run"


def tensors(state, path=""):
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{path}/{key}")


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_unharmed(run_dir: Path, whole: Path) -> None:
    """Every loss on the way and everything at the end is bit for bit that of the whole run."""
    ways = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in rows(d)] for d in (run_dir, whole)
    ]
    assert ways[0] == ways[1]
    got, want = load(newest(run_dir)), load(newest(whole))
    assert got["global_step"] == want["global_step"] == len(ways[1])
    for part in ("state_dict", "optimizer_states"):
        a, b = dict(tensors(got[part])), dict(tensors(want[part]))
        assert a.keys() == b.keys() and a
        assert [key for key in b if not torch.equal(a[key], b[key])] == []
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == len(ways[1])


def starts(run_dir: Path) -> list[int]:
    """The steps from which the run was started."""
    file = run_dir / "starts.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines]


def kill(node: Node, at: Path, rank: int, step: int) -> int:
    """Kills a rank once it has begun a step; returns the step that it had come to."""

    def reached():
        found = where(at, rank)
        return found if found and found[1] >= step and alive(found[0]) else None

    pid, now = until(reached, node)
    os.kill(pid, signal.SIGKILL)
    return now


def came(run: Run, condition) -> None:
    """Waits for something to be true while all ranks live."""
    waited(condition, run.alive, lambda: run.text()[-3000:])


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.soak
def test_a_rank_is_killed_and_the_newest_checkpoint_is_cut_off(written, whole, tmp_path):
    arguments = written(tmp_path)
    fence(tmp_path / "at", 20)
    node = Node(["fit", *arguments], tmp_path / "log", nproc=2)
    run_dir = tmp_path / "run"
    newer = until(lambda: [p for p in checkpoints_in(run_dir) if step_of(p) == 18], node)[0]
    os.truncate(newer, newer.stat().st_size // 2)
    kill(node, tmp_path / "at", 1, 18)
    fence(tmp_path / "at", None)
    assert node.wait() == 0, node.text()[-3000:]
    assert_unharmed(run_dir, whole)
    assert starts(run_dir) == [0, 12]
    assert "step-00000018.ckpt is damaged" in node.text()


@pytest.mark.soak
def test_a_rank_is_killed_ten_times(written, whole, tmp_path):
    arguments, draw, reached = written(tmp_path), random.Random(7), []
    fence(tmp_path / "at", 0)
    node = Node(["fit", *arguments], tmp_path / "log", nproc=2, max_restarts=12)
    for number in range(10):
        # One kill a start: two ranks that die together are one restart.
        until(lambda n=number: len(starts(tmp_path / "run")) == n + 1, node)
        last = step_of(newest(tmp_path / "run")) if newest(tmp_path / "run") else 0
        step = draw.randrange(last, min(STEPS - 2, last + 8))
        fence(tmp_path / "at", step + 1)
        reached.append(kill(node, tmp_path / "at", draw.randrange(2), step))
    fence(tmp_path / "at", None)
    assert node.wait() == 0, node.text()[-3000:]
    assert_unharmed(tmp_path / "run", whole)
    for came_to, went_on in zip(reached, starts(tmp_path / "run")[1:], strict=True):
        assert came_to - went_on <= EVERY, (reached, starts(tmp_path / "run"))


@pytest.mark.soak
def test_a_termination_saves_at_once(written, whole, tmp_path):
    arguments = ["fit", *written(tmp_path), "--checkpoint.every_n_steps=1000", "--resume=auto"]
    for number, step in ((signal.SIGTERM, 9), (signal.SIGUSR1, 20)):
        fence(tmp_path / "at", step)
        run = Run(arguments, 2, tmp_path / "log")
        came(run, lambda n=step: (found := where(tmp_path / "at", 0)) and found[1] >= n)
        run.signal(number)
        fence(tmp_path / "at", None)
        assert run.wait() == [128 + number] * 2, run.text()[-3000:]
        assert step <= step_of(newest_whole(tmp_path / "run")[0]) <= step + 2
    assert Run(arguments, 2, tmp_path / "log").wait() == [0, 0]
    assert_unharmed(tmp_path / "run", whole)
    # Once more, as a launcher would whose last start died on its way out.
    assert Run(arguments, 2, tmp_path / "log").wait() == [0, 0]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 48 MiB, room for four checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Uses up all room but 64 KiB."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - (64 << 10)))
    return ballast


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_disk_that_is_full_for_a_while(written, whole, tmp_path, small_disk, world_size):
    arguments = [*written(tmp_path)[:-1], str(small_disk / "run"), "--resume=auto"]
    fence(tmp_path / "at", 8)
    run = Run(["fit", *arguments], world_size, tmp_path / "log")
    came(run, lambda: newest(small_disk / "run"))
    ballast = fill(small_disk)
    fence(tmp_path / "at", 14)
    good = newest(small_disk / "run")
    came(run, lambda: "the run goes on" in run.text())
    assert newest_whole(small_disk / "run") == (good, {})
    ballast.unlink()
    fence(tmp_path / "at", None)
    assert run.wait() == [0] * world_size, run.text()[-3000:]
    assert "No space left on device" in run.text() and "Traceback" not in run.text()
    if world_size == 2:
        assert_unharmed(small_disk / "run", whole)
    assert len(rows(small_disk / "run")) == STEPS


@pytest.mark.soak
def test_a_disk_that_stays_full_ends_the_run_in_one_sentence(written, whole, tmp_path, small_disk):
    arguments = [*written(tmp_path)[:-1], str(small_disk / "run"), "--resume=auto"]
    fence(tmp_path / "at", 8)
    run = Run(["fit", *arguments, "--checkpoint.max_failures=2"], 2, tmp_path / "log")
    came(run, lambda: newest(small_disk / "run"))
    ballast = fill(small_disk)
    fence(tmp_path / "at", None)
    assert run.wait() == [2, 2], run.text()[-3000:]
    assert "make room and continue with" in run.text() and "Traceback" not in run.text()
    path, damaged = newest_whole(small_disk / "run")
    assert damaged == {} and step_of(path) >= EVERY
    ballast.unlink()
    assert Run(["fit", *arguments], 2, tmp_path / "log").wait() == [0, 0]
    assert_unharmed(small_disk / "run", whole)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["stopped", "asleep"])
def test_a_rank_that_hangs_is_named_and_the_run_goes_on(
    written, whole, tmp_path, monkeypatch, kind
):
    monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3")
    arguments = written(tmp_path, hang=[1, 15], stopped=kind == "stopped")
    node = Node(["fit", *arguments, "--watch.timeout=60"], tmp_path / "log", nproc=2)
    assert node.wait() == 0, node.text()[-3000:]
    host = re.escape(os.uname().nodename)
    # A process that is stopped says nothing more: its last word is of some step before.
    last = r"silent for \d+ s; step (\d|1\d)," if kind == "stopped" else "step 16,"
    assert re.search(rf"rank 1 \({host}\) hangs: {last}", node.text())
    assert re.search(rf"rank 0 \({host}\) waits: step 16,", node.text())
    assert_unharmed(tmp_path / "run", whole)
