"""The evaluate command around the evaluation: files, precision, where the data is looked for."""

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from counterpoint.launch.api import sources, watch
from counterpoint.launch.api.evaluation import suite_of
from counterpoint.launch.commands import evaluate as command
from counterpoint.launch.run.load import LoadedRun, load_scalars
from counterpoint.losses.components.lorentz import LorentzDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Positive

SUITE = """
tasks:
  colours:
    class_path: counterpoint.train.evaluation.zero_shot.classification.ZeroShot
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
        self.types, self.num_texts = [], 0

    def encode_image(self, image):
        out = image[:, :, 0, 0].flip(1).to(self.weight.dtype) @ self.weight
        self.types.append(out.dtype)
        return out

    def encode_text(self, ids, lengths):
        self.num_texts += len(ids)
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

    def load_run(run_dir, step, weights):
        asked.append(step if weights == "trained" else weights)
        return LoadedRun(model, objective, tokenizer, lambda image, size, rng: image, config)

    monkeypatch.setattr(sources, "load_run", load_run)
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config))
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
    names = sorted(path.name for path in (run.folder / "evaluation").iterdir())
    assert names == ["mine-00000100.json", "mine-00000100.npz", "prompts"]
    assert written["intervals"]["mine/colours/top1"] == [1, 1] and "[100.0, 100.0]" in printed


def test_step_batch_size_and_file_may_be_chosen(run, tmp_path):
    out = tmp_path / "new/result.json"
    words = [str(run.folder), "--checkpoint", "20", "--batch_size", "6", "--out", str(out)]
    command.main(words)
    assert json.loads(out.read_text())["step"] == 20
    assert run.asked == [20] and len(run.model.types) == 1


def test_curves_stand_beside_the_numbers_and_are_drawn(run, capsys, monkeypatch):
    calibration = "counterpoint.train.evaluation.confidence.calibration.Calibration"
    plain = "counterpoint.train.evaluation.zero_shot.classification.ZeroShot"
    run.suite.write_text(SUITE.replace(plain, calibration))
    command.main([str(run.folder)])
    written = json.loads((run.folder / "evaluation/mine-00000100.json").read_text())
    assert "mine/colours/reliability" not in written["metrics"]
    curve = written["details"]["mine/colours/reliability"]["curve"]
    assert curve["y"] == [1.0] and curve["sizes"] == [6] and curve["kind"] == "shares"
    page = run.folder / "evaluation/mine-00000100.html"
    assert "reliability: colours" in page.read_text()
    assert f"drawn in {page}" in capsys.readouterr().out
    page.unlink()
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    command.main([str(run.folder)])
    assert "where the extra `report` is installed" in capsys.readouterr().out
    assert not page.exists()


def test_a_baseline_is_compared_item_for_item(run, capsys):
    command.main([str(run.folder), "--checkpoint", "20"])
    run.model.weight.data[0] = run.model.weight.data[1]  # red looks like green, and is missed
    command.main([str(run.folder), "--baseline", str(run.folder)])
    written = json.loads((run.folder / "evaluation/mine-00000100.json").read_text())
    assert written["metrics"]["mine/colours/top1"] == pytest.approx(2 / 3)
    baseline = written["baseline"]
    assert baseline["outcomes"].endswith("mine-00000020.npz")
    difference = baseline["differences"]["mine/colours/top1"]
    assert difference["difference"] == pytest.approx(-1 / 3)
    assert difference["interval"][0] < -1 / 3 < difference["interval"][1]
    assert "66.7% - 100.0% = -33.3 [" in capsys.readouterr().out


def test_a_line_between_two_models_is_evaluated(run, tmp_path, monkeypatch, capsys):
    """From a model that takes red for green to one that is right."""
    other = command.load_source(run.folder)
    other.model.weight = nn.Parameter(torch.eye(3)[[0, 1, 1]])
    ends = {str(run.folder): other, "tuned": command.load_source(run.folder)}
    ends["tuned"] = dataclasses.replace(ends["tuned"], name="tuned", model=Model())
    monkeypatch.setattr(command, "load_source", lambda source, *more: ends[str(source)])
    command.main([str(run.folder), "--toward", "tuned", "--alphas", "1", "0", "0.75"])
    written = json.loads((run.folder / "evaluation/mine-00000100-toward-tuned.json").read_text())
    page = run.folder / "evaluation/mine-00000100-toward-tuned.html"
    assert ">top1</text>" in page.read_text() and "colours (%)" in page.read_text()
    assert [point["alpha"] for point in written["line"]] == [0, 0.75, 1]
    top1 = [point["metrics"]["mine/colours/top1"] for point in written["line"]]
    assert top1 == pytest.approx([2 / 3, 1, 1])
    one = json.loads((run.folder / "evaluation/mine-00000100-toward-tuned-0.json").read_text())
    assert one["metrics"]["mine/colours/top1"] == top1[0]
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("alpha")).split() == [
        "alpha", "0", "0.75", "1",
    ]  # fmt: skip


def test_a_baseline_without_results_is_noticed_before_the_evaluation(run, tmp_path):
    with pytest.raises(ValueError, match="evaluate it first, with counterpoint evaluate"):
        command.main([str(run.folder), "--baseline", str(tmp_path)])
    assert not run.model.types


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
    command.main([str(run.folder), "--suite", str(other)])
    written = json.loads((run.folder / "evaluation/other-00000100.json").read_text())
    assert written["metrics"]["other/colours/top1"] == 1
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
    command.main([str(run.folder)])
    assert set(run.model.types) == {expected}


def test_prompts_are_encoded_once_for_the_same_weights(run, tmp_path):
    def texts_of(*words):
        run.model.num_texts = 0
        command.main([str(run.folder), *words])
        return run.model.num_texts

    assert texts_of() == 3 and texts_of() == 0
    written = json.loads((run.folder / "evaluation/mine-00000100.json").read_text())
    assert written["metrics"]["mine/colours/top1"] == 1
    assert texts_of("--batch_size", "2") == 3, "which decides the last digits"
    # Other prompts, weights, another precision: none finds what is stored.
    run.suite.write_text(SUITE.replace('"{c}"', '["{c}", "{c}"]'))
    assert texts_of() == 6 and texts_of() == 0
    run.suite.write_text(SUITE)
    run.model.weight.data[0, 0] = 0.5
    assert texts_of() == 3
    run.config["trainer"]["precision"] = "32-true"
    assert texts_of() == 3
    run.config["model"] = {"text": {"activation": "quick_gelu"}}
    assert texts_of() == 3
    elsewhere = tmp_path / "elsewhere"
    assert texts_of("--prompts", str(elsewhere)) == 3
    (file,) = elsewhere.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:40])
    assert texts_of("--prompts", str(elsewhere)) == 3, "a damaged file is written anew"
    assert texts_of("--prompts", str(elsewhere)) == 0


def test_the_average_has_results_of_its_own(run):
    command.main([str(run.folder), "--weights", "ema"])
    assert run.asked == ["ema"]
    written = json.loads((run.folder / "evaluation/mine-00000100-ema.json").read_text())
    assert written["weights"] == "ema"


def test_a_checkpoint_may_be_named_by_its_file(run):
    command.main([str(run.folder / "checkpoints/step-00000020.ckpt")])
    assert (run.folder / "evaluation/mine-00000020.json").exists()


def test_a_run_is_watched_until_it_ends(run, monkeypatch, capsys):
    """Between two looks the run saves, deletes, is stopped and resumed, and ends."""
    folder = run.folder / "checkpoints"

    def save(step):
        torch.save({"x": torch.ones(100)}, folder / f"step-{step:08d}.ckpt")

    def vanish():
        # Seen by the watch, and deleted before it is read.
        save(130)
        monkeypatch.setattr(sources, "load_run", deleted)

    def deleted(run_dir, step, weights):
        (folder / f"step-{step:08d}.ckpt").unlink()
        monkeypatch.setattr(sources, "load_run", loading)
        raise ValueError("there is no weights file")

    def resume():
        os.utime(run.folder / "config.yaml", ns=(later, later))
        save(140)

    def end():
        save(150)
        os.utime(summary, ns=(later + 1, later + 1))

    loading, summary = sources.load_run, run.folder / "summary.json"
    summary.touch()  # of a shorter run, which has been resumed
    later = summary.stat().st_mtime_ns + 10**9
    os.utime(run.folder / "config.yaml", ns=(later, later))
    events = [lambda: save(120), lambda: None, vanish, resume, end]
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: events.pop(0)())
    (run.folder / "evaluation").mkdir()
    done = run.folder / "evaluation/mine-00000020.json"
    done.write_text("{}")
    command.main([str(run.folder), "--watch"])
    assert run.asked == [100, 120, 140, 150] and not events
    assert done.read_text() == "{}", "what is evaluated already is left alone"
    assert "step-00000130.ckpt was deleted before it was evaluated" in capsys.readouterr().out
    command.main([str(run.folder), "--watch"])
    assert run.asked == [100, 120, 140, 150]
    with pytest.raises(ValueError, match="leave --checkpoint and --out away"):
        command.main([str(run.folder), "--watch", "--checkpoint", "100"])
    with pytest.raises(ValueError, match="evaluation is no run folder"):
        command.main([str(run.folder / "evaluation"), "--watch"])


def test_a_model_that_is_no_runs_asks_for_a_suite():
    with pytest.raises(ValueError, match="theirs has no suite of its own; name one with --suite"):
        suite_of({}, "theirs")


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
