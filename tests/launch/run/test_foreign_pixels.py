"""Images as each library prepares them itself, on 50 random images of all shapes, none smaller
than the result: where both axes grow, each of two roundings may differ by a grey level."""

import json

import numpy as np
import pytest
import timm
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from counterpoint.launch.run.start.pixels import eval_transform_of
from counterpoint.models.interop import open_clip as ours_of_open_clip
from counterpoint.models.interop import timm as ours_of_timm
from counterpoint.models.interop import transformers as ours_of_transformers


def images():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(48, 160, 2)
        # Soft colours with grain, as photographs have. What is at 0 or 255 is left out: where
        # filters overshoot, it counts which axis comes first.
        colours = Image.fromarray(rng.integers(50, 206, (7, 5, 3), dtype=np.uint8))
        colours = colours.resize((int(width), int(height)), Image.Resampling.BICUBIC)
        grain = rng.integers(-4, 5, (height, width, 3))
        yield Image.fromarray((np.array(colours) + grain).clip(20, 235).astype(np.uint8))


def check(pixels, prepare):
    """`prepare` gives normalised floats [3, size, size] of a Pillow image."""
    transform = eval_transform_of(pixels)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (pixels.mean, pixels.std))
    for image in images():
        want = (prepare(image) * std + mean) * 255
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        found = transform(tensor, pixels.image_size)
        assert found.shape == want.shape
        assert (found - want).abs().max() < 1.01, image.size


OPEN_CLIP = {
    "CLIP": {},
    "SigLIP": {"resize_mode": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3},
    "MobileCLIP": {"interpolation": "bilinear", "mean": (0.0,) * 3, "std": (1.0,) * 3},
    "longest": {"resize_mode": "longest", "fill_color": 7},
}


@pytest.mark.parametrize("name", OPEN_CLIP)
def test_open_clip(name):
    settings = PreprocessCfg(size=48, **OPEN_CLIP[name])
    prepare = image_transform_v2(settings, is_train=False)
    content = json.loads(json.dumps(vars(settings)))
    check(ours_of_open_clip.pixels_of(content, 48), prepare)


SIZE = {"height": 48, "width": 48}
TRANSFORMERS = {
    "CLIP": transformers.CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=SIZE),
    "CLIP, larger": transformers.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=SIZE),
    "SigLIP": transformers.SiglipImageProcessor(size=SIZE),
    "bilinear": transformers.SiglipImageProcessor(size=SIZE, resample=2),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name, tmp_path):
    processor = TRANSFORMERS[name]
    processor.save_pretrained(tmp_path)
    kind = transformers.CLIPConfig if name.startswith("CLIP") else transformers.SiglipConfig
    config = kind(vision_config={"image_size": 48})

    def prepare(image):
        return processor(image, return_tensors="pt")["pixel_values"][0]

    check(ours_of_transformers.pixels_of(tmp_path, config), prepare)


@pytest.mark.parametrize("crop", [{}, {"crop_pct": 0.9}, {"crop_pct": 0.95, "crop_mode": "squash"}])
def test_timm(crop):
    settings = {"input_size": (3, 48, 48), "interpolation": "bicubic", "crop_pct": 1.0}
    settings |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "crop_mode": "center"} | crop
    prepare = timm.data.create_transform(**settings, is_training=False)
    check(ours_of_timm.pixels_of(settings), prepare)
