"""The runs for photographs as they stand, for a few steps of a few pairs on a CPU."""

import json

import open_clip
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file
from tiny import config, write_config, write_shards

from counterpoint.launch import cli
from counterpoint.launch.config.packaged import find_packaged

FEW = ("--trainer.accelerator=cpu", "--trainer.devices=1", "--data.num_workers=0")
RUNS = ("clip_cpu", "clip_cc3m", "clip_400m", "siglip", "flip", "clipa", "lit")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with shards to train and to validate on."""
    monkeypatch.chdir(tmp_path)
    write_shards(tmp_path / "pairs", 3, 6)
    index = ["data", "index", "pairs", "--out", "train.parquet", "--holdout", "6"]
    assert cli.main(index) == 0
    return tmp_path


def train(run, *options):
    """Two steps of each phase; returns the rows of metrics."""
    phases = yaml.safe_load(find_packaged(run).read_text())["phases"]
    short = {"samples": 8, "batch_size": 4, "warmup_samples": 4}
    changes = [f"--phases.{name}.{key}={n}" for name in phases for key, n in short.items()]
    assert cli.main(["fit", "--config", run, *FEW, *changes, *options]) == 0
    with open(f"runs/{run}/metrics.jsonl") as file:
        return [json.loads(line) for line in file]


def test_validation_on_what_is_trained_on_is_named(project, capfd):
    """Indexing again without a holdout leaves the old val.parquet beside."""
    values = config(project / "train.parquet", steps=2)
    values["data"]["num_workers"] = 0
    values["evaluation"] = {"suite": "validation"}
    fit = ["fit", "--config", str(write_config(project, values)), "--run_dir"]
    assert cli.main([*fit, "runs/a"]) == 0
    assert "are trained on" not in capfd.readouterr().err
    assert cli.main(["data", "index", "pairs", "--out", "train.parquet"]) == 0
    assert cli.main([*fit, "runs/b"]) == 0
    assert "1 shards of val.parquet are trained on as well" in capfd.readouterr().err


@pytest.mark.soak
@pytest.mark.parametrize("run", RUNS)
def test_a_run_trains_and_validates(project, run):
    options = []
    if run == "lit":
        made = timm.create_model("vit_base_patch16_224.augreg_in21k", num_classes=0)
        save_file(made.state_dict(), "vit.safetensors")
        options = ["--model.image.init_args.pretrained=vit.safetensors"]
    rows = train(run, *options)
    assert 0 <= rows[-1]["validation/retrieval/image_to_text_recall@1"] <= 1


@pytest.mark.soak
def test_a_run_is_fine_tuned(project):
    train("clip_cc12m")
    assert train("finetune")[-1]["step"] == 2


@pytest.mark.soak
def test_a_student_learns_from_a_model_of_open_clip(project):
    torch.manual_seed(0)
    save_file(open_clip.create_model("ViT-B-16").state_dict(), "teacher.safetensors")
    rows = train("distill_from_open_clip", "--teachers.large.init_args.source=teacher.safetensors")
    assert rows[-1]["step"] == 2
