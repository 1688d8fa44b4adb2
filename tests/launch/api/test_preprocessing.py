"""What a run sees otherwise than the weights that it started from is said before an evaluation."""

import json
from dataclasses import replace

import pytest
import torch
from export_run import IMAGE, config, write_run
from safetensors.torch import save_file

from counterpoint.data.images.transforms import EvalTransform
from counterpoint.launch.api.preprocessing import line_mismatch, start_mismatch
from counterpoint.launch.api.sources import load_source
from counterpoint.models.interop.base import made
from counterpoint.models.interop.open_clip import to_open_clip
from counterpoint.models.two_tower import TwoTower

SIZES = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
CLASS_TOKEN = IMAGE | {"init_args": IMAGE["init_args"] | {"model_args": SIZES}}
PIXELS = {
    "mean": IMAGE["init_args"]["mean"],
    "std": IMAGE["init_args"]["std"],
    "size": [24, 24],
}


@pytest.fixture
def theirs(tmp_path):
    """A folder of open_clip, whose images are squashed."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.manual_seed(0)
    cfg, tensors = to_open_clip(TwoTower(**made(config(CLASS_TOKEN)["model"])))
    written = {"model_cfg": cfg, "preprocess_cfg": PIXELS | {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    save_file(tensors, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("by_tower", [False, True])
def test_a_run_is_compared_with_what_it_started_from(tmp_path, theirs, by_tower):
    source = {"image": str(theirs)} if by_tower else str(theirs)
    values = config(CLASS_TOKEN) | {"init_from": source}
    loaded = load_source(write_run(tmp_path / "run", values))
    found = start_mismatch(loaded)
    assert found.startswith(f"run started from {theirs}, whose images are others: evaluation")
    assert '"resize": "squash"' in found and "mean" not in found
    same = replace(loaded, eval_transform=EvalTransform("squash"))
    assert start_mismatch(same) == ""
    loaded.model.image.stem.mean += 25.5
    assert start_mismatch(same) == (
        f"run started from {theirs}, whose images are others: mean of pixels [0.6, 0.5, 0.7], "
        "there [0.5, 0.4, 0.6]"
    )


@pytest.mark.parametrize("source", [None, "gone", {"text": "gone"}])
def test_nothing_is_said_where_nothing_is_known(tmp_path, source):
    loaded = load_source(write_run(tmp_path / "run", config() | {"init_from": source}))
    assert start_mismatch(loaded) == ""


def test_the_ends_of_a_line_are_compared(tmp_path):
    start = load_source(write_run(tmp_path / "run", config()))
    assert line_mismatch(start, start) == ""
    end = replace(start, name="end", eval_transform=EvalTransform(crop=0.8))
    assert "end prepares images otherwise than run" in line_mismatch(start, end)


def test_evaluate_prints_it(tmp_path, theirs, capsys):
    from counterpoint.launch.commands import evaluate

    (tmp_path / "mine.yaml").write_text(SUITE)
    run = write_run(tmp_path / "run", config(CLASS_TOKEN) | {"init_from": str(theirs)})
    assert evaluate.main([str(run), "--suite", str(tmp_path / "mine.yaml")]) == 0
    assert capsys.readouterr().out.count("run started from") == 1


SUITE = """
tasks:
  words:
    class_path: counterpoint.train.evaluation.robustness.text_spotting.TextSpotting
    init_args:
      data:
        class_path: counterpoint.data.word_images.WordImages
        init_args: {words: [red, blue]}
"""
