"""A run that meets bad samples goes back and on behind them, whenever it is killed."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from processes import Run, fit
from recorder import read
from test_resume import flat, kill_at
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.config.parser import make_parser, parse
from counterpoint.launch.run.build import build_parts
from counterpoint.train.callbacks.stop import StopOnSignal
from counterpoint.train.checkpointing.checkpoint import checkpoints_in, load, newest, step_of

STEPS, BATCH = 24, 12
BAD = range(13, 16)  # steps, on the first way
BACK_TO = 12
PASSED = (16 - BACK_TO) * BATCH
SPIKES = {"window": 8, "warmup": 6, "z": 8.0, "patience": 3, "margin": 1, "then": "rewind"}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """As many samples as no run of these tests sees twice."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder, num_shards=4, per_shard=90)], str(path))
    return path


def arguments(folder: Path, manifest: Path, bad=BAD, factor=1e4, **changes) -> list[str]:
    """A run that writes down its keys and meets spoilt samples; the arguments of `fit`."""
    folder.mkdir(exist_ok=True)
    values = config(manifest, steps=STEPS)
    spoilt = {"first": bad[0] * BATCH, "end": (bad[-1] + 1) * BATCH, "factor": factor}
    values["trainer"] |= {
        "log_every_n_steps": 5,
        "logger": False,
        "callbacks": [
            {"class_path": "recorder.Keys", "init_args": {"path": str(folder / "keys.txt")}},
            {"class_path": "poison.PoisonedSamples", "init_args": spoilt},
        ],
    }
    values["data"]["num_workers"] = 0
    values |= {
        "checkpoint": {"every_n_steps": 4, "keep": 9},
        "guard": {"max_nonfinite": 3, "spikes": SPIKES | changes.pop("spikes", {})},
        "grad_clip": {"class_path": "counterpoint.train.grad_clip.autoclip.AutoClip"},
        "ema": {"decay": 0.9},
    } | changes
    return ["--config", str(write_config(folder, values)), "--run_dir", str(folder / "run")]


def keys_by_position(argv: list[str], steps: int) -> list[set[str]]:
    """The global batches of the undisturbed order."""
    parser = make_parser()
    config = parse(parser, argv)
    config.phases["train"].samples = steps * BATCH
    parts = build_parts(parser, config)
    dataset = parts.data.train_dataset()
    return [set(map(str, dataset[step]["key"].tolist())) for step in range(steps)]


def check_keys(path: Path, order: list[set[str]]) -> None:
    """Each step's samples: those of the way that was left, and those behind them."""
    found: dict[int, set[str]] = {}
    for (step, _), records in read(path).items():
        for record in records:
            found.setdefault(step, set()).update(record.split(" ")[0].split(","))
    for step in range(STEPS):
        want = order[step] if step < BACK_TO else order[step + PASSED // BATCH]
        if BACK_TO <= step <= 16:  # looked for at the log step 20 or the checkpoint of step 16
            want = want | order[step] if step < 16 else want
        assert found[step] == want, step


def same_end(one: Path, other: Path) -> None:
    a, b = load(newest(one)), load(newest(other))
    assert a["global_step"] == b["global_step"] == STEPS
    for part in ("state_dict", "optimizer_states", "counterpoint", "PairsDataModule"):
        want, got = dict(flat(a[part])), dict(flat(b[part]))
        assert want.keys() == got.keys()
        assert [key for key in want if not torch.equal(want[key], got[key])] == [], part
    assert a["PairsDataModule"]["left_out"] == b["PairsDataModule"]["left_out"]


def test_goes_back_and_on_behind_the_window(tmp_path, manifest, capfd):
    argv = arguments(tmp_path / "whole", manifest)
    assert main(["fit", *argv]) == 0
    run_dir = tmp_path / "whole" / "run"
    assert (
        f"going back to step {BACK_TO}, and on behind the {PASSED} samples"
        in capfd.readouterr().err
    )
    check_keys(tmp_path / "whole" / "keys.txt", keys_by_position(argv, STEPS + PASSED // BATCH))
    end = load(newest(run_dir))
    assert end["PairsDataModule"]["left_out"] == [(BACK_TO, PASSED)]
    assert end["counterpoint"]["samples"] == STEPS * BATCH
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 24]
    assert [row["guard/rewinds"] for row in rows] == [0, 0, 1, 1, 1]
    assert rows[-1]["guard/spikes"] == 3  # those of the way left are not forgotten
    first = load(run_dir / "checkpoints" / "step-00000001.ckpt")
    assert first["PairsDataModule"]["ledger"]["samples"] == [[0, BATCH]]

    again = tmp_path / "again"
    shutil.copytree(run_dir, again)
    for step in (16, 20, 24):
        (again / "checkpoints" / f"step-{step:08d}.ckpt").unlink()
    assert main(["fit", "--resume", str(again)]) == 0
    same_end(run_dir, again)


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_goes_back_to_a_checkpoint_that_every_rank_has_written(tmp_path, manifest, strategy):
    saved = {"checkpoint": {"every_n_steps": 4, "keep": 9, "format": "distributed"}}
    argv = arguments(tmp_path / "whole", manifest, **saved)
    said = fit([*argv, f"--trainer.strategy={strategy}"], 2, tmp_path / "log")
    assert said.count(f"going back to step {BACK_TO}, and on behind the {PASSED} samples") == 1
    check_keys(tmp_path / "whole/keys.txt", keys_by_position(argv, STEPS + PASSED // BATCH))
    end = load(newest(tmp_path / "whole/run"))
    assert end["PairsDataModule"]["left_out"] == [(BACK_TO, PASSED)]
    assert end["counterpoint"]["samples"] == STEPS * BATCH
    assert all(path.is_dir() for path in checkpoints_in(tmp_path / "whole/run"))


@pytest.mark.parametrize("step", [pytest.param(10, marks=pytest.mark.soak), 14])
def test_a_stop_anywhere_changes_nothing(tmp_path, manifest, monkeypatch, step):
    """Where a checkpoint then lies nearer to the row, and between the row and the look at it."""
    stops = []
    received = StopOnSignal.on_train_batch_end

    def stop(self, trainer, *args):
        if trainer.global_step in stops:
            stops.remove(trainer.global_step)
            os.kill(os.getpid(), signal.SIGTERM)
        received(self, trainer, *args)

    monkeypatch.setattr(StopOnSignal, "on_train_batch_end", stop)
    # The row is steps 11 to 13, looked for after the log step 15, before which is one more.
    changes = {"bad": range(11, 15), "checkpoint": {"every_n_steps": 8, "keep": 9}}
    whole = tmp_path / "whole"
    assert main(["fit", *arguments(whole, manifest, **changes)]) == 0
    assert load(newest(whole / "run"))["PairsDataModule"]["left_out"] == [(8, 6 * BATCH)]
    stops.append(step)
    stopped = tmp_path / f"stopped-{step}"
    assert main(["fit", *arguments(stopped, manifest, **changes)]) == 128 + signal.SIGTERM
    assert step_of(newest(stopped / "run")) == step
    assert main(["fit", "--resume", str(stopped / "run")]) == 0
    same_end(whole / "run", stopped / "run")
    files = [{path.name for path in checkpoints_in(d / "run")} for d in (whole, stopped)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        pytest.param(
            {"spikes": {"max_rewinds": 1}, "bad": range(13, 23)},
            "has gone back 1 times already",
            id="too often",
            marks=pytest.mark.soak,
        ),
        pytest.param(
            {"checkpoint": {"every_n_steps": 3, "keep": 2}}, "raise checkpoint.keep", id="keep"
        ),
        pytest.param(
            {
                "bad": range(1, 9),
                "factor": float("nan"),
                "guard": {"max_nonfinite": 3, "spikes": SPIKES},
            },
            "no whole checkpoint of step 0 or before",
            id="too early",
        ),
    ],
)
def test_where_it_cannot_the_run_ends_with_a_sentence(tmp_path, manifest, capfd, changes, told):
    assert main(["fit", *arguments(tmp_path / "run", manifest, **changes)]) != 0
    assert told in capfd.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2", "zero3"])
def test_two_ranks_killed_before_and_after_going_back(tmp_path, manifest, strategy):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    option = f"--trainer.strategy={strategy}"
    ema = {"ema": None} if strategy == "zero3" else {}  # which no average can follow
    argv = arguments(whole, manifest, **ema)
    fit([*argv, option], 2, whole / "log")
    assert f"going back to step {BACK_TO}" in (whole / "log").read_text()
    check_keys(whole / "keys.txt", keys_by_position(argv, STEPS + PASSED // BATCH))

    run = Run(["fit", *arguments(killed, manifest, **ema), option], 2, killed / "log")
    for step in (14, 19):
        kill_at(run, killed, step)
        run = Run(["fit", "--resume", str(killed / "run")], 2, killed / "log")
    assert run.wait() == [0, 0], run.text()[-3000:]
    same_end(whole / "run", killed / "run")
