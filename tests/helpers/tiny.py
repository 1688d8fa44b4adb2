"""A data set of random images and a run on it that takes seconds."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

WORDS = [
    "red",
    "green",
    "blue",
    "square",
    "circle",
    "star",
    "moon",
    "sun",
    "tree",
    "house",
    "fish",
    "bird",
]

TRIPLET = ("anchor", "positive", "negative")
# How a stream of them is read, without its manifest.
SENTENCES = {
    "caption": ["json:anchor"],
    "texts": {"positive": ["json:positive"], "negative": ["json:negative"]},
    "lanes": 2,
    "block": 8,
}
# The term that reads it.
TEXT_PAIRS = {
    "class_path": "counterpoint.losses.infonce.InfoNCE",
    "init_args": {
        "views": ["text", "text.positive"],
        "scale": {"class_path": "counterpoint.losses.scalars.Fixed", "init_args": {"value": 20.0}},
    },
}


# A suite of one task, whose images lie in the folder `images` beside its file.
COLOURS = """
tasks:
  colours:
    class_path: counterpoint.train.evaluation.zero_shot.classification.ZeroShot
    init_args:
      data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: {path: images}}
      templates: "{c}"
"""


def write_shards(
    folder: Path,
    num_shards: int = 3,
    per_shard: int = 17,
    regions: Callable[[int], list] | None = None,
) -> list[Path]:
    """Writes shards as img2dataset does: KEY.png, KEY.txt, KEY.json.

    `regions` gives those of the sample of a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for shard in range(num_shards):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(per_shard):
                key = f"{shard:05d}{i:04d}"
                image = io.BytesIO()
                pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(image, "PNG")
                caption = " ".join(rng.choice(WORDS, 3))
                meta = {"key": key, "caption": caption}
                if regions is not None:
                    meta["regions"] = regions(shard * per_shard + i)
                add(tar, f"{key}.png", image.getvalue())
                add(tar, f"{key}.txt", caption.encode())
                add(tar, f"{key}.json", json.dumps(meta).encode())
        paths.append(path)
    return paths


def write_texts(folder: Path, num_shards: int = 2, per_shard: int = 13) -> list[Path]:
    """Writes shards of text triplets, without images: KEY.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    paths = []
    for shard in range(num_shards):
        path = folder / f"{shard:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for i in range(per_shard):
                key = f"t{shard:05d}{i:04d}"
                texts = {name: " ".join(rng.choice(WORDS, 3)) for name in TRIPLET}
                add(tar, f"{key}.json", json.dumps({"key": key, **texts}).encode())
        paths.append(path)
    return paths


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds one member."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def config(manifest: Path, objective: str = "clip", steps: int = 40) -> dict:
    """A run file with dropout on, in small."""
    terms = {
        "clip": {"infonce": {"class_path": "counterpoint.losses.infonce.InfoNCE"}},
        "siglip": {"siglip": {"class_path": "counterpoint.losses.siglip.SigLIP"}},
    }
    image = {
        "name": "vit_tiny_patch16_224",
        "image_size": 16,
        "model_args": {
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 2,
            "num_heads": 2,
            "proj_drop_rate": 0.1,
            "attn_drop_rate": 0.1,
            "drop_path_rate": 0.1,
        },
    }
    text = {"width": 16, "depth": 1, "num_heads": 2, "context_length": 8, "dropout": 0.1}
    return {
        "name": "tiny",
        "trainer": {
            "accelerator": "cpu",
            "precision": "32-true",
            "log_every_n_steps": 1,
            # Otherwise every process of every run multiplies matrices for 0.2 s to measure it.
            "peak_tflops": 1.0,
        },
        "data": {"manifest": str(manifest), "num_workers": 1, "lanes": 2, "block": 8},
        "model": {
            "embed_dim": 8,
            "image": {"class_path": "counterpoint.models.image.TimmTower", "init_args": image},
            "text": {
                "class_path": "counterpoint.models.text.clip.ClipTextTower",
                "init_args": text,
            },
        },
        "objective": {
            "terms": terms[objective],
            "logit_bias_init": -10.0 if objective == "siglip" else None,
        },
        "grad_clip": {"class_path": "counterpoint.train.grad_clip.fixed.Norm"},
        "phases": {"train": {"samples": steps * 12, "batch_size": 12, "learning_rate": 1.0e-3}},
        "checkpoint": {"every_n_steps": 6, "keep": 2},
    }


def write_config(folder: Path, values: dict) -> Path:
    """Writes a run file."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path
