"""Image towers of timm alone: a folder as on the hub, or a file of a model that timm names.

In: `config.json` with `architecture` and weights, or a name and tensors. Out: a `ForeignModel` of
one tower, without the classifier. Older layouts are translated by timm itself.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .archive import read_settings, read_shards
from .base import TIMM_TOWER, ForeignModel, Pixels
from .vit_names import TRUNK

CONFIG = "config.json"


def is_folder(folder: Path) -> bool:
    """Whether the folder is one of timm's: its configuration names an architecture."""
    path = folder / CONFIG
    return path.is_file() and "architecture" in read_settings(path)


def read_folder(folder: Path) -> ForeignModel:
    """Reads a folder of timm's layout.

    Raises:
        ValueError: weights are missing, or are those of another model.
    """
    config = read_settings(folder / CONFIG)
    # Beside the architecture stands how the images of these weights are prepared.
    preprocess = config.get("pretrained_cfg") or {}
    return convert(config["architecture"], read_shards(folder), preprocess)


def convert(
    name: str, tensors: Mapping[str, Tensor], preprocess: Mapping[str, Any] | None = None
) -> ForeignModel:
    """Translates the weights of an image tower.

    Args:
        name: timm's, such as `vit_base_patch16_224`.
        tensors: its state dict, a classifier included or not.
        preprocess: timm's `pretrained_cfg` of the weights, where it differs from the name's own.

    Raises:
        ValueError: timm has no such model, or it is another one's weights.
    """
    if not timm.is_model(name):
        raise ValueError(f"timm has no model '{name}'; see timm.list_models()")
    trunk, again = (_loaded(name, tensors, seed) for seed in (0, 1))
    state, other = trunk.state_dict(), again.state_dict()
    if missing := [n for n, value in state.items() if not torch.equal(value, other[n])]:
        raise ValueError(
            f"the weights are not those of timm's {name}: they have no {', '.join(missing[:3])}"
        )
    usual: Any = trunk.pretrained_cfg
    settings: dict[str, Any] = dict(usual) | dict(preprocess or {})
    pixels = pixels_of(settings)
    statistics = {"mean": [*pixels.mean], "std": [*pixels.std]}
    arguments = {"name": name, "image_size": pixels.image_size, **statistics}
    return ForeignModel(
        "timm",
        {"image": {"class_path": TIMM_TOWER, "init_args": arguments}},
        {f"{TRUNK}{n}": value for n, value in state.items()},
        pixels,
    )


def pixels_of(settings: Mapping[str, Any]) -> Pixels:
    """How timm prepares images in evaluation."""
    size = settings["input_size"][-1]
    squash = settings.get("crop_mode") == "squash"
    # timm rounds the scaled side down.
    side = math.floor(size / settings.get("crop_pct", 1.0))
    return Pixels(
        size,
        tuple(settings["mean"]),
        tuple(settings["std"]),
        "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
        "squash" if squash else "shortest",
        size / side,
    )


def _loaded(name: str, tensors: Mapping[str, Tensor], seed: int) -> nn.Module:
    """The model, with random numbers wherever timm finds nothing in the tensors."""
    overlay = {"state_dict": dict(tensors), "custom_load": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(
                name, num_classes=0, pretrained=True, pretrained_cfg_overlay=overlay
            )
        except (RuntimeError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the weights are not those of timm's {name}: {reason}") from error
