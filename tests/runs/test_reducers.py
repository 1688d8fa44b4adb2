"""A run through every kind of phase: the same choices, weights and losses wherever it goes on."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from masks import read
from processes import fit
from test_resume import flat
from tiny import config, write_config, write_shards

from counterpoint.data.shards.index import index_shards
from counterpoint.train.checkpointing.checkpoint import load, newest

OBJECTIVE = Path(__file__).resolve().parents[2] / "configs" / "objective" / "aclip.yaml"
IMAGE = "counterpoint.models.reducers.patches."
RANDOM = {"class_path": f"{IMAGE}RandomPatches", "init_args": {"drop": 0.5}}
# By name: that is how the run file's phases are written, and so their order.
REDUCERS = {
    "attentive": {
        "class_path": "counterpoint.models.reducers.attentive.AttentivePatches",
        "init_args": {"drop": 0.5, "cell": 1},
    },
    "hidden": {
        "class_path": "counterpoint.models.reducers.mask_token.MaskTokens",
        "init_args": {"of": RANDOM},
    },
    "random": RANDOM,
    "whole": None,
}
EACH = 2  # steps a phase
STEPS = EACH * len(REDUCERS)


def settings(folder: Path, manifest: Path) -> dict:
    """A run file; dropout would be another one on another number of processes."""
    values = config(manifest) | {
        "objective": yaml.safe_load(_with_narrow_heads(OBJECTIVE.read_text())),
        "ema": {"decay": 0.8, "final_decay": 1.0},
        "optim": {
            "class_path": "counterpoint.train.optim.adamw.AdamW",
            "init_args": {"groups": {"frozen": ["image.trunk.patch_embed.*"]}},
        },
        "grad_clip": {
            "class_path": "counterpoint.train.grad_clip.autoclip.AutoClip",
            "init_args": {"window": 6},
        },
        "checkpoint": {"every_n_steps": 1, "keep": 99},
    }
    values["model"]["embed_dim"] = 128
    values["model"]["text"]["init_args"]["dropout"] = 0.0
    sizes = values["model"]["image"]["init_args"]["model_args"]
    sizes = {name: 0.0 if name.endswith("_rate") else size for name, size in sizes.items()}
    values["model"]["image"]["init_args"]["model_args"] = sizes | {"patch_size": 4}
    crop = {"class_path": "TrainTransform", "init_args": {"scale": [0.3, 0.8], "flip": 0.5}}
    around = {
        "class_path": "counterpoint.data.images.enclosing_crop.EnclosingCrop",
        "init_args": {"around": ["image", "image.other"]},
    }
    values["data"]["train_transform"] = crop
    values["data"]["views"] = {"other": {"transform": crop}, "whole": {"transform": around}}
    texts = {"class_path": "counterpoint.models.reducers.tokens.RandomTokens", "init_args": {}}
    texts["init_args"]["num_tokens"] = 4
    path = str(folder / "masks")
    values["phases"] = {}
    for name, reducer in REDUCERS.items():
        phase = {"samples": EACH * 12, "batch_size": 12, "learning_rate": 1e-3}
        if reducer is not None:
            init_args = {"of": reducer, "path": path}
            phase["image_reducer"] = {"class_path": "masks.Images", "init_args": init_args}
        if name == "random":
            init_args = {"of": texts, "path": path}
            phase["text_reducer"] = {"class_path": "masks.Texts", "init_args": init_args}
        values["phases"][name] = phase
    return values


def _with_narrow_heads(objective: str) -> str:
    """The heads of pooled features take 16, the width of this image tower."""
    for widths in ("128, 512, 512, 128", "128, 512, 128"):
        objective = objective.replace(f"[{widths}]", f"[16, {widths[5:]}]", 1)
    return objective


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    index_shards([str(p) for p in write_shards(folder / "pairs")], str(folder / "m.parquet"))
    path = write_config(folder, settings(folder, folder / "m.parquet"))
    fit(["--config", str(path), "--run_dir", str(folder / "run")], 1, folder / "log")
    return folder


def resumed(whole: Path, folder: Path, step: int, world_size: int, *options: str) -> Path:
    """A copy of the run that goes on after `step`."""
    shutil.copytree(whole, folder)
    for file in sorted((folder / "run" / "checkpoints").iterdir())[step:]:
        file.unlink()
    # The configuration of a run that goes on names the same file.
    (whole / "masks").unlink()
    try:
        fit(["--resume", str(folder / "run"), *options], world_size, folder / "log")
        (whole / "masks").rename(folder / "masks.new")
    finally:
        shutil.copy(folder / "masks", whole / "masks")
    (folder / "masks.new").rename(folder / "masks")
    return folder


def losses(folder: Path) -> list[float]:
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [row["loss"] for row in rows]


def states(folder: Path) -> list[dict]:
    return [load(path) for path in sorted((folder / "run" / "checkpoints").iterdir())]


def test_no_parameter_comes_goes_or_changes_shape(whole):
    saved = [state["state_dict"] for state in states(whole)]
    assert len(saved) == STEPS and len(losses(whole)) == STEPS
    shapes = [{name: value.shape for name, value in state.items()} for state in saved]
    assert all(shape == shapes[0] for shape in shapes)
    token = [state["model.image.mask_token"] for state in saved]
    before = list(REDUCERS).index("hidden") * EACH
    assert not any(value.any() for value in token[:before])
    assert all(value.any() for value in token[before:])
    frozen = "model.image.trunk.patch_embed.proj.weight"
    assert all(torch.equal(state[frozen], saved[0][frozen]) for state in saved)


def test_each_phase_begins_with_new_statistics_of_norms(whole):
    counts = [int(state["counterpoint"]["grad_clip"]["count"]) for state in states(whole)]
    assert counts == [*range(1, EACH + 1)] * len(REDUCERS)


def test_each_phase_keeps_what_its_reducer_says(whole):
    chosen = read(whole / "masks")
    assert len(chosen) == 12 * EACH * (3 * 2 + 1)
    views = {name.split("/")[1] for name in chosen}
    assert views == {"image", "image.other", "text"}
    for name, row in chosen.items():
        step, view, _ = name.split("/")
        if view == "text":
            assert len(row) == 4
        elif list(REDUCERS)[int(step) // EACH] == "hidden":
            assert len(row) == 16 and sum(patch < 0 for patch in row) == 8
        else:
            assert len(row) == 8 and min(row) >= 0 and row == sorted(set(row))


@pytest.mark.parametrize(
    "step",
    [
        EACH,
        pytest.param(1, marks=pytest.mark.soak),
        pytest.param(2 * EACH + 1, marks=pytest.mark.soak),
    ],
)
def test_a_resume_at_a_boundary_or_in_a_phase_is_bit_equal(tmp_path, whole, step):
    again = resumed(whole, tmp_path / "again", step, 1, "--data.num_workers=0")
    assert losses(again) == losses(whole)
    want, got = read(whole / "masks"), read(again / "masks")
    assert got and got == {n: row for n, row in want.items() if int(n.split("/")[0]) >= step}
    one, other = (dict(flat(load(newest(folder / "run")))) for folder in (whole, again))
    assert one.keys() == other.keys()
    assert {
        "/counterpoint/grad_clip/history",
        "/state_dict/ema.model.image.mask_token",
    } <= one.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero1", "zero2"])
def test_two_processes_that_go_on_choose_the_same(tmp_path, whole, strategy):
    step = 1
    options = ("--data.num_workers=2", f"--trainer.strategy={strategy}", "--model.chunks=2")
    two = resumed(whole, tmp_path / "two", step, 2, *options)
    want, got = read(whole / "masks"), read(two / "masks")
    assert got and got == {n: row for n, row in want.items() if int(n.split("/")[0]) >= step}
    assert losses(two) == pytest.approx(losses(whole), rel=1e-4)
