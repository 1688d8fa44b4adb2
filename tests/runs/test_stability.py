"""Clippers, the guard and optimisers in whole runs, as their files say."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from tiny import config, write_config, write_shards

from counterpoint.data.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.train.checkpoint import load, newest

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CLIPS = sorted((CONFIGS / "clip").glob("*.yaml"))
OPTIMS = sorted((CONFIGS / "optim").glob("*.yaml"))
LIMITS = {
    **dict.fromkeys(("norm", "autoclip"), {"clip/limit", "clip/clipped"}),
    "zclip": {"clip/clipped"},  # within a few steps there is no limit yet
    "per_tower": {"clip/rest/limit", "clip/image/clipped", "clip/text/clipped"},
    "agc": set(),
    "value": set(),
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """Trains a tiny model for some steps in this process; returns the run's folder."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))

    def call(*options: str, steps: int = 3, status: int = 0, **changes) -> Path:
        values = config(path, steps=steps)
        values["data"]["num_workers"] = 0
        values["trainer"] |= {"gradient_clip_val": None, "logger": False}
        values["trainer"] |= changes.pop("trainer", {})
        run_dir = tmp_path_factory.mktemp("run") / "run"
        file = write_config(tmp_path_factory.mktemp("file"), values | changes)
        argv = ["fit", "--config", str(file), "--run_dir", str(run_dir), *options]
        assert main(argv) == status
        return run_dir

    return call


def rows(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def tensors(state, path=""):
    """Every tensor in nested containers, by path."""
    if isinstance(state, torch.Tensor):
        yield path, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from tensors(value, f"{path}/{key}")


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_every_clipper_trains_and_says_its_limit(train, path):
    run_dir = train("--clip", str(path))
    for row in rows(run_dir):
        assert LIMITS[path.stem] <= row.keys()
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    assert rows(run_dir)[-1]["update_rms"] > 0


@pytest.mark.parametrize("path", OPTIMS, ids=lambda path: path.stem)
def test_every_optimiser_trains(train, path):
    run_dir = train("--optim", str(path), steps=2, checkpoint={"every_n_steps": 1, "keep": 2})
    first, last = sorted((run_dir / "checkpoints").iterdir())
    before, after = load(first)["state_dict"], load(last)["state_dict"]
    still = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith("model.image.")}
    assert still == (frozen if path.stem == "lit" else set())
    assert all(math.isfinite(row["loss"]) for row in rows(run_dir))


@pytest.mark.parametrize(("clip", "optim"), [("autoclip", "lamb"), ("zclip", "muon")])
def test_resumed_statistics_are_those_of_the_whole_run(train, tmp_path, clip, optim):
    parts = {
        slot: yaml.safe_load((CONFIGS / slot / f"{name}.yaml").read_text())
        for slot, name in (("clip", clip), ("optim", optim))
    }
    parts["clip"]["init_args"] |= {"zclip": {"warmup": 3}, "autoclip": {"window": 6}}[clip]
    phases = {
        name: {"samples": 60, "batch_size": 12, "learning_rate": 1e-3} for name in ("one", "two")
    }
    run_dir = train(
        phases=phases,
        guard={"spikes": {"window": 4, "warmup": 2}},
        checkpoint={"every_n_steps": 1, "keep": 99},
        **parts,
    )
    want = dict(tensors(load(newest(run_dir))))
    for step in (4, 5, 8):  # in a phase, at its end, in the next one
        again = tmp_path / str(step)
        shutil.copytree(run_dir, again)
        for file in sorted((again / "checkpoints").iterdir())[step:]:
            file.unlink()
        assert main(["fit", "--resume", str(again)]) == 0
        got = dict(tensors(load(newest(again))))
        assert want.keys() == got.keys()
        assert [key for key in want if not torch.equal(want[key], got[key])] == []
    assert {"/counterpoint/clip/count", "/counterpoint/guard/log_norm"} <= want.keys()
    assert want["/counterpoint/clip/count"] == 5  # the second phase's


def test_two_clippers_are_refused(train, capsys):
    options = ["--clip", str(CONFIGS / "clip" / "zclip.yaml")]
    train(*options, status=2, trainer={"gradient_clip_val": 1.0})
    assert "set trainer.gradient_clip_val=null" in capsys.readouterr().err


def test_a_rewind_is_refused(train, capsys):
    train("--guard.spikes.then=rewind", status=2)
    assert "not available yet" in capsys.readouterr().err


POISON = {"class_path": "poison.Poison", "init_args": {"steps": [3]}}


def test_a_nan_leaves_weights_average_and_statistics_alone_and_is_counted(train):
    run_dir = train(
        *("--clip", str(CONFIGS / "clip" / "autoclip.yaml")),
        steps=4,
        trainer={"callbacks": [POISON]},
        ema={"decay": 0.5},
        checkpoint={"every_n_steps": 1, "keep": 9},
    )
    _, before, after, later = (load(p) for p in sorted((run_dir / "checkpoints").iterdir()))
    for part in ("state_dict", "optimizer_states"):
        old, new = dict(tensors(before[part])), dict(tensors(after[part]))
        assert old and [key for key in old if not torch.equal(old[key], new[key])] == []
    assert any(name.startswith("ema") for name in before["state_dict"])
    past = [state["counterpoint"]["clip"]["count"].item() for state in (before, after, later)]
    assert past == [2, 2, 3]
    assert [row["guard/nonfinite"] for row in rows(run_dir)] == [0, 0, 1, 1]
    assert math.isfinite(rows(run_dir)[-1]["loss"])


def test_too_many_nans_in_a_row_end_the_run(train, capsys):
    poison = POISON | {"init_args": {"steps": [2, 3, 4]}}
    train("--guard.max_nonfinite=1", steps=4, status=2, trainer={"callbacks": [poison]})
    assert "the last 2 steps had no finite gradient" in capsys.readouterr().err
