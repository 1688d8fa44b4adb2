"""Clippers, the guard and optimisers in whole runs, as their files say."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from poison import Poison
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.env import prepare
from counterpoint.launch.run.train import Run
from counterpoint.train.checkpointing.checkpoint import load, newest, step_of
from counterpoint.train.grad_clip.base import Clipper
from counterpoint.train.optim.adamw import AdamW

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CLIPS = sorted((CONFIGS / "grad_clip").glob("*.yaml"))
OPTIMS = sorted((CONFIGS / "optim").glob("*.yaml"))
# AdamW with other numbers only.
ALIKE = {
    f"adamw_{name}"
    for name in ("clipa", "dynamics", "flip", "open_clip", "siglip", "slip", "small")
}
LIMITS = {
    "norm": {"grad_clip/limit", "grad_clip/clipped"},
    "autoclip": {"grad_clip/limit", "grad_clip/clipped"},
    "zclip": {"grad_clip/clipped"},  # within a few steps there is no limit yet
    "per_tower": {"grad_clip/rest/limit", "grad_clip/image/clipped", "grad_clip/text/clipped"},
    "agc": set(),
    "agc_all": set(),
    "value": set(),
}
# What these leave as it is.
OF_TEXT = ("model.text.", "model.text_projection.")
OF_IMAGE = ("model.image.", "model.image_projection.")
SCALE = "model.logit_scale"
FROZEN = {
    "adamw_aclip": "model.image.trunk.patch_embed.",
    "lit": "model.image.",
    "lit_text": OF_TEXT,
    "adabelief": SCALE,
    "locked_image": OF_IMAGE,
    "leaf": (*OF_IMAGE, SCALE),
    "leaf_small": (*OF_IMAGE, SCALE),
    "prompt_kd": (*OF_TEXT, SCALE),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Writes a run file with changes; returns the arguments of `fit`."""
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(path))

    def call(steps: int = 3, **changes) -> list[str]:
        values = config(path, steps=steps)
        values["data"]["num_workers"] = 0
        values |= {"grad_clip": None}
        values["trainer"] |= {"logger": False}
        values["trainer"] |= changes.pop("trainer", {})
        return ["--config", str(write_config(tmp_path_factory.mktemp("file"), values | changes))]

    return call


@pytest.fixture
def train(written, tmp_path):
    """Trains a tiny model for some steps in this process; returns the run's folder."""

    def call(*options: str, status: int = 0, **changes) -> Path:
        run_dir = tmp_path / "run"
        assert main(["fit", *written(**changes), "--run_dir", str(run_dir), *options]) == status
        return run_dir

    return call


@pytest.fixture(scope="module")
def base(written):
    """A parsed run of three steps, in which slots can be exchanged."""
    prepare()
    parser = run_config.make_parser()
    config = run_config.parse(parser, written(checkpoint={"every_n_steps": 1, "keep": 3}))
    return parser, config


def train_with(base, run_dir: Path, file: Path | None = None, kind: type = Clipper, **changes):
    """Trains with one slot as in a file, which alone is parsed, and leaves changed."""
    parser, config = base
    config = config.clone()
    if file is not None:
        slot = file.parent.name
        small = ArgumentParser(exit_on_error=False)
        small.add_subclass_arguments(kind, slot)
        config[slot] = small.parse_args([f"--{slot}={file}"])[slot]
    for key, value in {"run_dir": str(run_dir), **changes}.items():
        config[key] = value
    assert Run(parser, config).train() == 0
    return run_dir


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
def test_every_clipper_trains_and_says_its_limit(base, tmp_path, path):
    run_dir = train_with(base, tmp_path / "run", path)
    for row in rows(run_dir):
        assert LIMITS[path.stem] <= row.keys()
        assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    assert rows(run_dir)[-1]["update_rms"] > 0


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[pytest.mark.soak] if p.stem in ALIKE else [], id=p.stem)
        for p in OPTIMS
    ],
)
def test_every_optimiser_trains(base, tmp_path, path):
    run_dir = train_with(base, tmp_path / "run", path, AdamW)
    first, _, last = sorted((run_dir / "checkpoints").iterdir())
    before, after = load(first)["state_dict"], load(last)["state_dict"]
    still = {name for name in before if torch.equal(before[name], after[name])}
    prefix = FROZEN.get(path.stem, ())
    assert still == {name for name in before if name.startswith(prefix)}
    assert all(math.isfinite(row["loss"]) for row in rows(run_dir))


@pytest.mark.parametrize(
    ("clip", "optim", "step"),
    [
        pytest.param("autoclip", "lamb", 4, id="inside"),
        pytest.param("zclip", "muon", 5, id="end", marks=pytest.mark.soak),
    ],
)
def test_resumed_in_or_at_the_end_of_a_phase(base, written, tmp_path, clip, optim, step):
    parts = {
        slot: yaml.safe_load((CONFIGS / slot / f"{name}.yaml").read_text())
        for slot, name in (("grad_clip", clip), ("optim", optim))
    }
    parts["grad_clip"]["init_args"] |= {"zclip": {"warmup": 3}, "autoclip": {"window": 6}}[clip]
    phases = {
        name: {"samples": 60, "batch_size": 12, "learning_rate": 1e-3} for name in ("one", "two")
    }
    run_dir, again = tmp_path / "run", tmp_path / "again"
    argv = written(
        phases=phases,
        guard={"spikes": {"window": 4, "warmup": 2}},
        checkpoint={"every_n_steps": 1, "keep": 99},
        **parts,
    )
    parser, _ = base
    config = run_config.parse(parser, argv)
    config.run_dir = str(run_dir)
    assert Run(parser, config).train() == 0
    want = dict(tensors(load(newest(run_dir))))
    shutil.copytree(run_dir, again)
    for file in sorted((again / "checkpoints").iterdir())[step:]:
        file.unlink()
    config.run_dir = str(again)
    assert Run(parser, config, again).train() == 0
    got = dict(tensors(load(newest(again))))
    assert want.keys() == got.keys()
    assert [key for key in want if not torch.equal(want[key], got[key])] == []
    assert {"/counterpoint/grad_clip/count", "/counterpoint/guard/log_norm"} <= want.keys()
    assert want["/counterpoint/grad_clip/count"] == 5  # the second phase's


def test_a_nan_leaves_weights_average_and_statistics_alone_and_is_counted(train):
    run_dir = train(
        *("--grad_clip", str(CONFIGS / "grad_clip" / "autoclip.yaml")),
        steps=4,
        trainer={"callbacks": [{"class_path": "poison.Poison", "init_args": {"steps": [3]}}]},
        ema={"decay": 0.5},
        checkpoint={"every_n_steps": 1, "keep": 9},
    )
    _, before, after, later = (load(p) for p in sorted((run_dir / "checkpoints").iterdir()))
    for part in ("state_dict", "optimizer_states"):
        old, new = dict(tensors(before[part])), dict(tensors(after[part]))
        assert old and [key for key in old if not torch.equal(old[key], new[key])] == []
    assert any(name.startswith("ema") for name in before["state_dict"])
    past = [state["counterpoint"]["grad_clip"]["count"].item() for state in (before, after, later)]
    assert past == [2, 2, 3]
    assert [row["guard/nonfinite"] for row in rows(run_dir)] == [0, 0, 1, 1]
    assert math.isfinite(rows(run_dir)[-1]["loss"])


def test_too_many_nans_in_a_row_end_the_run(base, tmp_path):
    changes = {"trainer.callbacks": [Poison([1, 2, 3])], "guard.max_nonfinite": 1}
    with pytest.raises(ValueError, match="the last 2 steps had no finite gradient"):
        train_with(base, tmp_path / "run", **changes)


def test_curvature_is_estimated_every_so_often(train):
    optim = {"class_path": "counterpoint.train.optim.sophia.SophiaG", "init_args": {"every": 2}}
    run_dir = train(
        steps=5,
        optim=optim,
        trainer={"callbacks": [{"class_path": "poison.Poison", "init_args": {"steps": [4]}}]},
        checkpoint={"every_n_steps": 1, "keep": 9},
    )
    states = [
        load(p)["optimizer_states"][0]["state"] for p in sorted((run_dir / "checkpoints").iterdir())
    ]
    sums = [sum(s["hessian"].double().sum().item() for s in state.values()) for state in states]
    # At the second step; at the fourth there is nothing to go by.
    assert sums[0] == 0 < sums[1] and sums[1:] == [sums[1]] * 4
    assert [0 < row.get("unclipped", -1) <= 1 for row in rows(run_dir)] == [False, True] + [
        False
    ] * 3


def test_a_callback_that_ends_the_run_is_no_signal(train, capsys):
    after = {"duration": {"milliseconds": 1}, "interval": "step"}
    timer = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": after}
    run_dir = train(trainer={"callbacks": [timer]})
    assert "stopped by a callback after step 1; continue with" in capsys.readouterr().out
    assert step_of(newest(run_dir)) == 1
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_by"]) == (1, "a callback")
