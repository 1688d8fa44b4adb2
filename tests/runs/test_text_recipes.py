"""Recipes of text towers in small: what moves, what stays, and what the texts are."""

import json

import pytest
import torch
from processes import fit
from test_stages import state, write_config
from tiny import config, write_shards

from counterpoint.data.shards.index import index_shards

pytestmark = pytest.mark.soak


def run_of(folder, **parts):
    index_shards([str(p) for p in write_shards(folder)], str(folder / "train.parquet"))
    run = config(folder / "train.parquet", steps=6)
    run["checkpoint"] = {"every_n_steps": 1, "keep": 0}
    run |= parts
    return run


def trained(folder, run, *options):
    out = folder / run["name"]
    path = write_config(folder, run)
    fit(["--config", str(path), "--run_dir", str(out), *options], 1, folder / "log")
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return out, rows


def moved(run_dir, before, after):
    """Parts of the model of which a number is another one."""
    one, two = (state(run_dir, step, "model.") for step in (before, after))
    return {name.split(".")[0] for name in one if not torch.equal(one[name], two[name])}


def test_clip_italian_trains_its_projections_then_all_at_a_scale_of_20(tmp_path):
    run = run_of(tmp_path, objective="clip_fixed_scale", optim="adabelief", grad_clip="agc_all")
    del run["phases"]
    size = {"samples": 36, "batch_size": 12, "learning_rate": 1e-3}
    frozen = {"groups": {"frozen": ["image.*", "text.*", "logit_scale"]}}
    run["stages"] = {
        "projections": {"optim": {"init_args": frozen}, "phases": {"projections": size}},
        "everything": {"phases": {"everything": size}},
    }
    out, rows = trained(tmp_path, run)
    projections = {"image_projection", "text_projection"}
    assert moved(out, 1, 3) == projections
    assert moved(out, 3, 6) == projections | {"image", "text"}
    assert [row["logit_scale"] for row in rows] == pytest.approx([20] * 6)


def test_leaf_moves_the_text_tower_alone_and_sees_other_attacks_each_epoch(tmp_path):
    first, _ = trained(tmp_path, run_of(tmp_path))
    edits = "counterpoint.data.text.character_edits.CharacterEdits"
    run = run_of(tmp_path, name="leaf", objective="leaf", optim="leaf")
    run["data"]["texts"] = {f"attack_{i}": {"class_path": edits} for i in range(1, 5)}
    frozen = "counterpoint.models.teachers.frozen.Frozen"
    run["teachers"] = {"original": {"class_path": frozen}}
    out, rows = trained(tmp_path, run, "--init_from", str(first))
    assert moved(out, 1, 6) == {"text", "text_projection"}
    assert all(0 < row["loss"] == pytest.approx(row["loss/leaf"]) for row in rows)
    losses = [row["loss"] for row in rows]
    for path in (out / "checkpoints").glob("*.ckpt"):
        if int(path.stem[5:]) > 3:
            path.unlink()
    fit(["--resume", str(out)], 1, tmp_path / "log")
    again = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in again] == losses
