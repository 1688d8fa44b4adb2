"""`counterpoint replay`: a run's step that was not finite, from the file that it left."""

import re

import pytest
import torch
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.launch.cli import main
from counterpoint.train.checkpointing.checkpoint import load


@pytest.fixture(scope="module")
def capsule(tmp_path_factory):
    """Of a run whose learning rate blows the weights up in its first step."""
    folder = tmp_path_factory.mktemp("run")
    manifest = folder / "train.parquet"
    index_shards([str(p) for p in write_shards(folder)], str(manifest))
    values = config(manifest, steps=3)
    values["data"]["num_workers"] = 0
    values["phases"]["train"]["learning_rate"] = 1.0e30
    values["trainer"]["logger"] = False
    values["trace"] = {"nonfinite": 1}
    argv = ["--config", str(write_config(folder, values)), "--run_dir", str(folder / "run")]
    assert main(["fit", *argv]) == 0
    (path,) = (folder / "run" / "nonfinite").iterdir()
    return path


def test_it_names_the_first_module(capsule, capsys):
    assert capsule.name == "step-00000002.pt"
    assert main(["replay", str(capsule)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 2, rows of 1 of 1 ranks, 32-true; the norm of its gradient was nan"
    assert any(re.match(r"the loss is (nan|inf)", line) for line in lines)
    assert any(re.match(r"the (out|in)put of model\.\w+\..* not finite", line) for line in lines)


def test_a_step_that_is_finite_here_is_said(capsule, tmp_path, capsys):
    content = load(capsule)
    state = content["state_dict"]
    for name, value in state.items():
        if value.is_floating_point():
            state[name] = value.clamp(-0.1, 0.1)
    torch.save(content, tmp_path / "other.pt")
    assert main(["replay", str(tmp_path / "other.pt")]) == 1
    assert "everything is finite here" in capsys.readouterr().out


def test_other_files_are_refused(tmp_path, capsys):
    torch.save({"step": 1}, tmp_path / "some.pt")
    (tmp_path / "text.pt").write_text("no")
    for name, told in (
        ("some.pt", "is no capsule: it lacks config,"),
        ("text.pt", "cannot be read"),
        ("none.pt", "there is no file"),
    ):
        assert main(["replay", str(tmp_path / name)]) == 2
        assert told in capsys.readouterr().err
