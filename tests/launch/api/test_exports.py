"""What a run was exported to is loaded again, with the run's features."""

import json

import export_run
import pytest
import torch

from counterpoint.launch.api.embedder import load_model
from counterpoint.launch.commands.export import main
from counterpoint.launch.export.parity import texture

TEXTS = ["a red house", "two DOGS, 3 cats; isn't it?", ""]
CLASS_TOKEN = {"init_args": export_run.IMAGE["init_args"] | {"model_args": export_run.SIZES}}
RESNET = {
    "class_path": "counterpoint.models.image.TimmTower",
    "init_args": {
        "name": "resnet18",
        "image_size": 32,
        "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]},
    },
}
CROP = {
    "class_path": "counterpoint.data.images.transforms.EvalTransform",
    "init_args": {"crop": 0.8},
}


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ("open_clip", export_run.config(export_run.IMAGE | CLASS_TOKEN)),
        ("transformers", export_run.config(objective={"logit_bias_init": -10.0})),
        ("transformers", export_run.config(RESNET, eval_transform=CROP)),
    ],
    ids=["open_clip", "transformers", "convolutions"],
)
def test_an_exported_folder_is_the_run(tmp_path, target, values):
    run_dir, out = export_run.write_run(tmp_path / "run", values), tmp_path / "out"
    assert main([str(run_dir), str(out), "--to", target]) == 0
    run, exported = load_model(run_dir, device="cpu"), load_model(out, device="cpu")
    images = [texture(70, 50, 1), texture(24, 24, 2), texture(41, 97, 3)]
    for image in images:
        apart = run.transform(image).int() - exported.transform(image).int()
        assert apart.abs().max() <= 1
    square = [image.resize((run.model.image_size,) * 2) for image in images]
    if not values["data"].get("eval_transform"):  # no cut, no resizing: the same pixels
        ours, theirs = run.encode_image(square), exported.encode_image(square)
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
        assert ours.std(0).max() > 1e-3
    ours, theirs = run.encode_text(TEXTS), exported.encode_text(TEXTS)
    torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
    assert exported.logit_scale == pytest.approx(run.logit_scale)
    assert exported.logit_bias == run.logit_bias


def test_towers_of_other_kinds_are_named(tmp_path):
    config = {
        "model_type": "vision-text-dual-encoder",
        "vision_config": {"model_type": "timm_wrapper"},
        "text_config": {"model_type": "bert"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text_config is of type bert; only clip_text_model can"):
        load_model(tmp_path)
