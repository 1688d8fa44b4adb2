"""Models of others are loaded, and evaluated, as they are."""

import json

import numpy as np
import open_clip
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import save_file

from counterpoint.launch.api.embedder import load_model
from counterpoint.launch.commands import evaluate

CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", params=["bicubic", "bilinear"])
def theirs(request, tmp_path_factory):
    """A model of open_clip in a folder, what prepares its images there, and the folder."""
    folder = tmp_path_factory.mktemp("theirs") / "small"
    folder.mkdir()
    resized = {"interpolation": request.param, "resize_mode": "squash"}
    pixels = {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3} | resized
    content = {"model_cfg": CONFIG, "preprocess_cfg": pixels}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    name = f"local-dir:{folder}"
    model = open_clip.create_model(name, load_weights=False).eval()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    _, _, transform = open_clip.create_model_and_transforms(name)
    return model, transform, folder


def test_features_are_the_librarys(theirs):
    model, transform, folder = theirs
    ours = load_model(folder, device="cpu")
    rng = np.random.default_rng(0)
    tiles = [Image.fromarray(rng.integers(60, 190, (4, 3, 3), dtype=np.uint8)) for _ in range(3)]
    images = [tile.resize((60, 50 * (i + 1)), 0) for i, tile in enumerate(tiles)]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), 0.4
    for each in images:
        pixels = 255 * (transform(each) * std + mean)
        assert (ours.transform(each) - pixels).abs().max() < 1.01, "Torch and Pillow round apart"
    texts = ["a red fish", "the moon", "a house and a very tall tree in the sun, and the sea"]
    with torch.no_grad():
        image = model.encode_image(torch.stack([transform(each) for each in images]))
        text = model.encode_text(open_clip.tokenize(texts, 12))
    found = ours.encode_image(images, normalize=False)
    torch.testing.assert_close(found, image, atol=5e-3, rtol=0)
    assert image.std(0).max() > 0.05
    torch.testing.assert_close(ours.encode_text(texts, normalize=False), text, atol=1e-5, rtol=0)
    assert ours.logit_scale == pytest.approx(float(model.logit_scale.exp()))
    assert ours.logit_bias is None


def test_they_are_evaluated(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("blue", "red")):
        path = tmp_path / "images" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (255 * i, 0, 255 - 255 * i)).save(path)
    (tmp_path / "mine.yaml").write_text(tiny.COLOURS)
    assert evaluate.main([str(theirs[2]), "--suite", "mine.yaml"]) == 0
    written = json.loads((tmp_path / "evaluation/small/mine.json").read_text())
    model = load_model(theirs[2], device="cpu")
    answers = model.similarity([f"images/{n}/0.png" for n in ("blue", "red")], ["blue", "red"])
    expected = float((answers.argmax(1) == torch.arange(2)).double().mean())
    assert written["model"] == "small"
    assert written["metrics"]["mine/colours/top1"] == expected
    assert "small: written to evaluation/small/mine.json" in capsys.readouterr().out
    assert list(tmp_path.glob("evaluation/small/prompts/*/*.safetensors"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 3}, "is no run folder, so that it has neither steps nor an average"),
        ({"weights": "ema"}, "is no run folder, so that it has neither steps nor an average"),
    ],
)
def test_only_runs_have_steps(theirs, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(theirs[2], **options)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere .*give a folder with open_clip_config\.json"):
        load_model(tmp_path / "nowhere")
