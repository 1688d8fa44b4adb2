"""docs/python.md runs as it is printed."""

import copy
import re
from pathlib import Path

import pytest
import tiny
import torch

from counterpoint.launch import cli
from counterpoint.launch.commands.fit import main

PAGE = Path(__file__).resolve().parents[2] / "docs/python.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with indexed shards, as the page supposes it."""
    monkeypatch.chdir(tmp_path)
    shards = tiny.write_shards(tmp_path / "pairs", 2, 20)
    assert cli.main(["data", "index", *map(str, shards), "--out", "train.parquet"]) == 0
    return tmp_path


def run(*blocks, names=None):
    names = {} if names is None else names
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_a_trainer_of_ones_own(folder):
    from_shards, own_loader, _ = BLOCKS
    names = run(from_shards)
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
    names = run(own_loader, names=names)
    assert names["trainer"].global_step == 4
    assert not torch.equal(before, names["module"].model.image_projection.weight)


def test_a_stream_in_a_trainer_of_ones_own(folder):
    stream = 'StreamingPairs(Stream("pairs/*.tar", shuffle=4), num_workers=0)'
    imports = "from counterpoint.data.stream.module import Stream, StreamingPairs\n"
    listed = 'PairsDataModule("train.parquet", num_workers=0)'
    assert listed in BLOCKS[0]
    names = run(imports + BLOCKS[0].replace(listed, stream))
    assert names["trainer"].global_step == 8


def test_a_run_is_loaded(folder):
    values = tiny.config(folder / "train.parquet", steps=2)
    values["data"]["num_workers"] = 0
    values["trainer"] |= {"logger": False, "peak_tflops": 1.0}
    path = tiny.write_config(folder, values)
    assert main(["--config", str(path), "--run_dir", "runs/mine"]) == 0
    names = run(BLOCKS[2])
    assert names["similarity"].shape == (1, 2)
    assert names["similarity"].abs().max() <= 1 + 1e-5
