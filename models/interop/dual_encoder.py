"""transformers' two-tower model of a network of timm and CLIP's text transformer, into ours.

In: a folder of `save_pretrained` with such a `VisionTextDualEncoderModel`, which is what
`counterpoint export --to transformers` writes of towers that no other model there has. Out: a
`ForeignModel`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from . import transformers
from .archive import read_settings, read_shards
from .base import CLIP_TEXT, TIMM_TOWER, ForeignModel
from .names import Rule, to_ours, unnamed
from .text_names import trunk

KIND = "vision-text-dual-encoder"
PARTS = {"vision_config": "timm_wrapper", "text_config": "clip_text_model"}
IMAGE, TOKENS = "vision_model.timm_model.", "embeddings.token_embedding.weight"


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a `VisionTextDualEncoderModel`."""
    path = folder / transformers.CONFIG
    return path.is_file() and read_settings(path).get("model_type") == KIND


def read_folder(folder: Path) -> ForeignModel:
    """Reads such a folder.

    Raises:
        ValueError: its towers are others, or a tensor has no counterpart here.
    """
    config = read_settings(folder / transformers.CONFIG)
    for part, kind in PARTS.items():
        if (found := config[part].get("model_type")) != kind:
            raise ValueError(
                f"{folder} holds a two-tower model whose {part} is of type {found}; only {kind} "
                "can be converted"
            )
    vision, text = config["vision_config"], config["text_config"]
    sizes: dict[str, Any] = dict(vision.get("model_args") or {})
    size = sizes.pop("img_size", None) or _size_of_images(folder)
    # Its image processor is CLIP's.
    clip = SimpleNamespace(model_type="clip", vision_config=SimpleNamespace(image_size=size))
    pixels = transformers.pixels_of(folder, clip)
    tensors = read_shards(folder)
    start = next((n for n in tensors if n.endswith(TOKENS)), f"text_model.{TOKENS}")
    rules = [
        Rule("image.trunk.{*}", f"{IMAGE}{{*}}"),
        Rule(f"{trunk()}{{*}}", f"{start.removesuffix(TOKENS)}{{*}}"),
        Rule("image_projection.weight", "visual_projection.weight"),
        Rule("text_projection.weight", "text_projection.weight"),
    ]
    scale = tensors.pop("logit_scale").reshape(1)
    if left := unnamed(rules, tensors):
        raise ValueError(
            f"{folder} holds {len(left)} tensors that its model has no place for "
            f"({', '.join(left[:3])})"
        )
    weights = to_ours(rules, tensors) | {"logit_scale": scale}
    if "logit_bias" in config:  # which transformers' class does not read
        weights["logit_bias"] = torch.tensor([float(config["logit_bias"])])
    statistics = {"mean": [*pixels.mean], "std": [*pixels.std]}
    image = {"name": vision["architecture"], "image_size": size, **statistics, "model_args": sizes}
    width = text["hidden_size"]
    model = {
        "embed_dim": config["projection_dim"],
        "image": {"class_path": TIMM_TOWER, "init_args": image},
        "text": {
            "class_path": CLIP_TEXT,
            "init_args": {
                "width": width,
                "depth": text["num_hidden_layers"],
                "num_heads": text["num_attention_heads"],
                "context_length": text["max_position_embeddings"],
                "vocab_size": text["vocab_size"],
                "mlp_ratio": text["intermediate_size"] / width,
                "activation": text["hidden_act"],
            },
        },
    }
    return ForeignModel(
        "transformers VisionTextDualEncoderModel",
        model,
        weights,
        pixels,
        transformers.tokenizer(folder, text["vocab_size"]),
        text["max_position_embeddings"],
    )


def _size_of_images(folder: Path) -> int:
    """The side that the image processor cuts to."""
    settings = transformers.image_processor(folder)
    size = settings.get("crop_size") or settings.get("size")
    if isinstance(size, dict) and "height" in size:
        return int(size["height"])
    raise ValueError(f"{folder} does not say how large its images are: add a processor's config")
