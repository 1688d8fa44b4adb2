"""A run with a teacher, a moving average and heads: the same on all ranks, and after a resume."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from processes import fit
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_parts
from counterpoint.train.checkpointing.checkpoint import load, newest

STEPS = 6
HEAD = "counterpoint.losses.components.heads.MLP"
TERMS = {
    "byol": {
        "class_path": "counterpoint.losses.self_supervision.byol.BYOL",
        "init_args": {
            "projector": {"class_path": HEAD, "init_args": {"widths": [8, 12, 6]}},
            "predictor": {"class_path": HEAD, "init_args": {"widths": [6, 12, 6]}},
            "pairs": [["image.strong.raw", "ema.image.raw"], ["image.raw", "ema.image.strong.raw"]],
        },
    },
    "mimicry": {
        "class_path": "counterpoint.losses.distillation.feature_regression.FeatureRegression",
        "init_args": {"feature": "text", "target": "teacher.start.text"},
    },
}


@pytest.fixture
def values(tmp_path):
    """The run file's content; the run starts from weights of another seed."""
    index_shards([str(p) for p in write_shards(tmp_path / "pairs")], str(tmp_path / "m.parquet"))
    values = config(tmp_path / "m.parquet", steps=STEPS)
    parser = run_config.make_parser()
    path = write_config(tmp_path, values | {"seed": 7})
    model = build_parts(parser, run_config.parse(parser, ["--config", str(path)])).model
    safetensors.torch.save_file(model.state_dict(), tmp_path / "start.safetensors")
    strong = {"transform": {"class_path": "TrainTransform", "init_args": {"scale": [0.3, 1.0]}}}
    values["data"]["views"] = {"strong": strong}
    values["objective"]["terms"] |= TERMS
    return values | {
        "init_from": str(tmp_path / "start.safetensors"),
        "teachers": {"start": {"class_path": "counterpoint.models.teachers.frozen.Frozen"}},
        "ema": {"decay": 0.8, "final_decay": 1.0},
    }


def run_file(folder, values):
    folder.mkdir()
    arguments = {"path": str(folder / "averages")}
    values["trainer"]["callbacks"] = [
        {"class_path": "averages.Averages", "init_args": arguments},
    ]
    return ["--config", str(write_config(folder, values)), "--run_dir", str(folder / "run")]


def losses(folder):
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [{k: v for k, v in row.items() if k.startswith("loss")} for row in rows]


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["fsdp2", "zero1", "zero2", "zero3", "zero2_offload"])
def test_strategies_average_alike(tmp_path, values, strategy):
    found = {}
    values["checkpoint"] = {"every_n_steps": 3, "keep": 2}
    for name in ("ddp", strategy):
        values["trainer"]["strategy"] = name
        folder = tmp_path / name
        arguments = run_file(folder, values)
        values["trainer"]["callbacks"] = []
        write_config(folder, values)
        fit(arguments, 2, folder / "log")
        found[name] = (losses(folder), load(newest(folder / "run"))["state_dict"])
    assert len(found[strategy][0]) == STEPS
    for row, want in zip(found[strategy][0], found["ddp"][0], strict=True):
        assert row == pytest.approx(want, rel=1e-4)
    state, want = found[strategy][1], found["ddp"][1]
    for name in want:
        if name.startswith("ema.") or ".target." in name:
            torch.testing.assert_close(state[name], want[name], rtol=1e-3, atol=1e-5)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / strategy / "run", again / "run")
    newest(again / "run").unlink()
    assert int(newest(again / "run").stem.removeprefix("step-")) < STEPS
    fit(["--resume", str(again / "run")], 2, again / "log")
    assert losses(again) == found[strategy][0]
    same = load(newest(again / "run"))["state_dict"]
    assert [name for name in state if not torch.equal(state[name], same[name])] == []


@pytest.mark.parametrize(
    "ema",
    [{"decay": 0.8, "final_decay": 1.0}, pytest.param({"beta": 0.5}, marks=pytest.mark.soak)],
)
def test_two_ranks_and_a_resume(tmp_path, values, ema):
    values["ema"] = ema
    whole, again = tmp_path / "whole", tmp_path / "again"
    values["checkpoint"] = {"every_n_steps": 3, "keep": 2}
    fit(run_file(whole, values), 2, whole / "log")
    want = (whole / "averages.0").read_text()
    assert len({line.split()[1] for line in want.splitlines()}) == STEPS
    assert (whole / "averages.1").read_text() == want

    shutil.copytree(whole / "run", again / "run")
    newest(again / "run").unlink()
    fit(["--resume", str(again / "run")], 2, again / "log")
    for rank in range(2):  # each goes on writing where it wrote before
        resumed = (whole / f"averages.{rank}").read_text().removeprefix(want)
        assert resumed == "".join(want.splitlines(keepends=True)[3:])
    assert len(losses(whole)) == STEPS and losses(again) == losses(whole)
    assert {"loss/byol", "loss/mimicry", "loss/infonce"} <= losses(whole)[0].keys()
    assert losses(whole)[0]["loss/mimicry"] > 1e-3  # the student's dropout is on
    one, other = (load(newest(folder / "run")) for folder in (whole, again))
    state = one["state_dict"]
    assert state.keys() == other["state_dict"].keys()
    assert all(torch.equal(state[name], other["state_dict"][name]) for name in state)
    assert not any("start" in name or "teacher" in name for name in state)
    heads = "objective.terms.byol"
    for average, online in (
        ("ema.model.image_projection.weight", "model.image_projection.weight"),
        (f"{heads}.target.0.weight", f"{heads}.projector.0.weight"),
    ):
        assert not torch.equal(state[average], state[online])
    for name in ("running_mean", "running_var"):
        assert torch.equal(state[f"{heads}.target.1.{name}"], state[f"{heads}.projector.1.{name}"])
