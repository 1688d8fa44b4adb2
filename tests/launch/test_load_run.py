"""A run is loaded where what it was trained with besides its model is not there."""

import json
import sys

import pytest
import tiny
import torch
import yaml
from PIL import Image

from counterpoint.launch.commands import evaluate
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.run.build import build_module, build_parts
from counterpoint.launch.run.load import load_run

# As an installation with wandb 0.31 wrote it; `entity` goes to wandb.init.
WANDB = {
    "class_path": "lightning.pytorch.loggers.WandbLogger",
    "init_args": {"project": "x", "entity": None, "gone_since": 1},
}
ELSEWHERE = {
    "trainer": {
        "precision": "32-true",
        "logger": WANDB,
        "callbacks": [{"class_path": "their_own.Callback", "init_args": {"a": 1}}],
        "argument_of_another_lightning": True,
    },
    "teachers": {"big": {"class_path": "their_own.Teacher"}},
    "optim": {"class_path": "their_own.Optimizer"},
    "grad_clip": {"class_path": "their_own.Clipper"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The module of a run, and the run's resolved configuration."""
    path = tmp_path_factory.mktemp("trained") / "run.yaml"
    path.write_text(yaml.safe_dump(tiny.config(path.with_name("manifest.parquet"))))
    parser = run_config.make_parser()
    parsed = run_config.parse(parser, ["--config", str(path)])
    return build_module(build_parts(parser, parsed)), run_config.plain(parser, parsed)


@pytest.fixture
def run_dir(trained, tmp_path):
    """Its folder, as it comes from a machine with other packages."""
    return write(tmp_path / "run", trained[0].state_dict(), trained[1] | ELSEWHERE)


def write(folder, state, config):
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": state}, folder / "checkpoints/step-00000003.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_only_what_reads_and_encodes_is_built(trained, run_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    run = load_run(run_dir)
    want = trained[0].model.state_dict()
    assert all(torch.equal(value, want[name]) for name, value in run.model.state_dict().items())
    assert not run.model.training and not run.objective.training
    assert run.config["trainer"]["logger"] == WANDB
    assert run.objective.needs == trained[0].objective.needs
    assert run.tokenizer(["a red fish"], 8)[1].tolist() == [5]


def test_such_a_run_is_evaluated(run_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    for i, name in enumerate(("blue", "red")):
        path = tmp_path / "images" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (255 * i, 0, 255 - 255 * i)).save(path)
    (tmp_path / "mine.yaml").write_text(tiny.COLOURS)
    assert evaluate.main([str(run_dir), "--suite", str(tmp_path / "mine.yaml")]) == 0
    written = json.loads((run_dir / "evaluation/mine-00000003.json").read_text())
    assert written["metrics"]["mine/colours/top1"] in (0.0, 0.5, 1.0)


def test_choices_of_the_run_are_kept(trained, tmp_path):
    state, config = trained[0].state_dict(), yaml.safe_load(yaml.safe_dump(trained[1]))
    config["data"]["eval_transform"] = {
        "class_path": "counterpoint.data.images.transforms.EvalTransform",
        "init_args": {"resize": "squash"},
    }
    config["objective"]["logit_scale_init"] = 3.0
    state["model.image.mask_token"] = torch.ones(16)
    run = load_run(write(tmp_path / "a", state, config))
    assert run.eval_transform.resize == "squash"
    assert torch.equal(run.model.image.mask_token, torch.ones(16))


def test_what_does_not_fit_is_said(trained, tmp_path):
    state, config = dict(trained[0].state_dict()), yaml.safe_load(yaml.safe_dump(trained[1]))
    config["model"]["text"]["class_path"] = "their_own.TextTower"
    with pytest.raises(ValueError, match=r"config\.yaml: .*their_own"):
        load_run(write(tmp_path / "a", state, config))
    del state["model.text_projection.weight"]
    with pytest.raises(ValueError, match=r"do not fit: .* 1 missing \(text_projection\.weight\)"):
        load_run(write(tmp_path / "b", state, trained[1]))
