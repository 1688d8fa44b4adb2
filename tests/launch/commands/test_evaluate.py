"""The evaluate command around the evaluation: files, precision, where the data is looked for."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from counterpoint.launch.commands import evaluate as command
from counterpoint.launch.run.load import LoadedRun, load_scalars
from counterpoint.losses.components.lorentz import LorentzDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Positive

SUITE = """
tasks:
  colours:
    class_path: counterpoint.train.evaluation.zeroshot.ZeroShot
    init_args:
      data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: {path: pictures}}
      templates: "{c}"
"""
NAMES = ("blue", "green", "red")


class Model(nn.Module):
    """Right about every colour; notes the type it computes in."""

    image_size, context_length = 2, 8

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.types = []

    def encode_image(self, image):
        out = image[:, :, 0, 0].flip(1).to(self.weight.dtype) @ self.weight
        self.types.append(out.dtype)
        return out

    def encode_text(self, ids, lengths):
        return nn.functional.one_hot(ids[:, 0], 3).to(self.weight.dtype)


def tokenizer(texts, length):
    return torch.tensor([[NAMES.index(t)] * length for t in texts]), torch.ones(len(texts)).long()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder whose loading is replaced; returns it with what the loader will answer."""
    for i, name in enumerate(NAMES):
        for n in range(2):
            path = tmp_path / "data/pictures" / name / f"{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2), tuple(255 * (i == 2 - c) for c in range(3))).save(path)
    suite = tmp_path / "mine.yaml"
    suite.write_text(SUITE)
    for step in (20, 100):
        path = tmp_path / f"run/checkpoints/step-{step:08d}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"x": torch.ones(100)}, path)
    (tmp_path / "run/config.yaml").touch()
    config = {
        "trainer": {"precision": "bf16-mixed"},
        "evaluation": {
            "suite": str(suite),
            "batch_size": 4,
            "data_root": str(tmp_path / "data"),
        },
    }
    model, objective = Model(), Objective({"clip": InfoNCE()})
    asked = []

    def load_run(run_dir, step):
        asked.append(step)
        return LoadedRun(model, objective, tokenizer, lambda image, size, rng: image, config)

    monkeypatch.setattr(command, "load_run", load_run)
    return SimpleNamespace(
        folder=tmp_path / "run", suite=suite, config=config, model=model, asked=asked
    )


def test_the_runs_own_suite_is_the_default(run, capsys):
    assert command.main([str(run.folder)]) == 0
    written = json.loads((run.folder / "evaluation/mine-00000100.json").read_text())
    assert written["step"] == 100 and written["suite"] == "mine"
    assert written["metrics"]["mine/colours/top1"] == 1
    assert run.asked == [100]
    assert run.model.types == [torch.bfloat16, torch.bfloat16]  # batches of 4 and 2
    printed = capsys.readouterr().out
    assert "mine/colours  top1 100.0%" in printed and "mine-00000100.json" in printed
    assert [path.name for path in (run.folder / "evaluation").iterdir()] == ["mine-00000100.json"]


def test_step_batch_size_and_file_may_be_chosen(run, tmp_path):
    out = tmp_path / "new/result.json"
    words = [str(run.folder), "--checkpoint", "20", "--batch_size", "6", "--out", str(out)]
    command.main(words)
    assert json.loads(out.read_text())["step"] == 20
    assert run.asked == [20] and len(run.model.types) == 1


def test_a_damaged_checkpoint_is_named_and_passed_over(run, capsys):
    newest = run.folder / "checkpoints/step-00000100.ckpt"
    data = bytearray(newest.read_bytes())
    data[data.index(torch.ones(100).numpy().tobytes()) + 3] ^= 1
    newest.write_bytes(data)
    assert torch.load(newest)["x"].sum() != 100, "torch reads it without a word"
    command.main([str(run.folder)])
    assert run.asked == [20]
    assert f"{newest} is damaged (bytes of" in capsys.readouterr().out


def test_another_suite_brings_its_own_root(run, tmp_path):
    other = tmp_path / "data/other.yaml"
    other.write_text(SUITE)
    results = command.evaluate_run(run.folder, str(other))
    assert results["other/colours/top1"] == 1
    run.suite.write_text(SUITE)
    with pytest.raises(ValueError, match="nowhere/pictures does not exist"):
        command.main([str(run.folder), "--data_root", str(tmp_path / "nowhere")])


def test_a_run_without_a_suite_asks_for_one(run):
    run.config["evaluation"] |= {"suite": None, "data_root": None}
    with pytest.raises(ValueError, match="name one with --suite"):
        command.main([str(run.folder)])


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (None, torch.float32),
        ("32-true", torch.float32),
        ("bf16-true", torch.bfloat16),
        ("64-true", torch.float64),
    ],
)
def test_towers_run_in_the_runs_precision(run, precision, expected):
    run.config["trainer"]["precision"] = precision
    command.evaluate_run(run.folder)
    assert set(run.model.types) == {expected}


def test_a_checkpoints_scalars_are_those_that_rank():
    """Curvatures decide what is near: evaluation of a checkpoint needs the learned ones."""

    def objective():
        scalars = {n: Positive(0.5, 0.1, 10.0) for n in ("alpha_image", "alpha_text", "curvature")}
        return Objective({"near": InfoNCE(LorentzDistance())}, scalars=scalars)

    trained, fresh = objective(), objective()
    nn.init.constant_(trained.scalars["alpha_text"].log, -2.0)
    state = {f"objective.{name}": value for name, value in trained.state_dict().items()}
    load_scalars(fresh, state | {"model.logit_scale": torch.ones(1)})
    text = torch.eye(3)
    assert torch.equal(fresh.metric().texts(text), trained.metric().texts(text))
    assert not torch.equal(fresh.metric().texts(text), objective().metric().texts(text))
