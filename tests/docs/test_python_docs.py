"""docs/python.md runs as it is printed."""

import copy
import json
import re
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

from counterpoint.launch import cli
from counterpoint.launch.commands.fit import main

PAGE = Path(__file__).resolve().parents[2] / "docs/python.md"
ENCODE, CLASSIFY, SEARCH, HEAD, BUILD, FROM_SHARDS, OWN_LOADER = re.findall(
    r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with indexed shards, as the page supposes it."""
    monkeypatch.chdir(tmp_path)
    shards = tiny.write_shards(tmp_path / "pairs", 2, 20)
    assert cli.main(["data", "index", *map(str, shards), "--out", "train.parquet"]) == 0
    return tmp_path


@pytest.fixture
def run_file(folder):
    """A run file in it."""
    values = tiny.config(folder / "train.parquet", steps=2)
    values["data"]["num_workers"] = 0
    values["trainer"] |= {"logger": False}
    return tiny.write_config(folder, values).rename(folder / "mine.yaml")


@pytest.fixture
def run(folder, run_file):
    """A run and photographs in class folders beside it."""
    assert main(["--config", str(run_file), "--run_dir", "runs/mine"]) == 0
    for name in ("red", "blue"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20 + i, 20), name).save(folder / f"photos/{name}/{i}.png")


def execute(*blocks, names=None):
    names = {} if names is None else names
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_a_trainer_of_ones_own(folder):
    names = execute(FROM_SHARDS)
    trainer, module = names["trainer"], names["module"]
    assert trainer.global_step == 8
    best = trainer.checkpoint_callback.best_model_path
    (log,) = folder.glob("logs/lightning_logs/version_0/metrics.csv")
    header, *rows = log.read_text().splitlines()
    assert len(rows) == 4  # every 2 of 8 steps
    assert {"loss", "loss/infonce", "lr", "logit_scale", "grad_norm"} <= set(header.split(","))
    assert trainer.checkpoint_callback.best_model_score == min(
        float(dict(zip(header.split(","), row.split(","), strict=True))["loss"]) for row in rows
    )
    parts = {"model": copy.deepcopy(module.model), "objective": module.objective}
    torch.nn.init.zeros_(parts["model"].image_projection.weight)
    loaded = type(module).load_from_checkpoint(best, **parts, phases=module.phases)
    saved = torch.load(best, weights_only=True)["state_dict"]
    assert torch.equal(loaded.model.image_projection.weight, saved["model.image_projection.weight"])
    with pytest.raises(ValueError, match="give model, objective, phases as well, or load a folder"):
        type(module).load_from_checkpoint(best)

    before = module.model.image_projection.weight.detach().clone()
    names = execute(OWN_LOADER, names=names)
    assert names["trainer"].global_step == 4
    assert not torch.equal(before, names["module"].model.image_projection.weight)


def test_a_stream_in_a_trainer_of_ones_own(folder):
    stream = 'StreamingPairs(Stream("pairs/*.tar", shuffle=4), num_workers=0)'
    imports = "from counterpoint.data.stream.module import Stream, StreamingPairs\n"
    listed = 'PairsDataModule("train.parquet", num_workers=0)'
    assert listed in FROM_SHARDS
    names = execute(imports + FROM_SHARDS.replace(listed, stream))
    assert names["trainer"].global_step == 8


def test_a_run_is_loaded(run):
    names = execute(ENCODE, CLASSIFY, SEARCH, HEAD)
    assert names["similarity"].shape == (2, 2)
    assert names["similarity"].abs().max() <= 1 + 1e-5
    assert torch.allclose(names["probabilities"].sum(1), torch.ones(2))
    assert names["accuracy"] in [n / 6 for n in range(7)]
    assert names["features"].shape == (40, 8) and len(set(names["captions"])) >= 2
    before = torch.log(torch.tensor(2.0))
    assert names["step"]() < before, "the head has learnt something"


def test_a_run_is_built_and_trained(folder, run_file):
    names = execute(BUILD)
    run_dir = folder / "runs/scales"
    assert names["trainer"].global_step == len(names["scales"].values) == 6
    assert [path.name for path in sorted((run_dir / "checkpoints").iterdir())] == [
        "step-00000003.ckpt",
        "step-00000006.ckpt",
    ]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["logit_scale"] for row in rows] == pytest.approx(names["scales"].values)
    assert json.loads((run_dir / "summary.json").read_text())["steps"] == 6
