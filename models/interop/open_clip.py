"""Models of open_clip: their configuration and tensors into ours, and ours into theirs.

In: `model_cfg` as in open_clip's own JSON files (the architecture) with a state dict, or a
`TwoTower`. Out: a `ForeignModel`, or such a configuration with a state dict. Which of open_clip's
towers is which of ours is in `open_clip_image` and `open_clip_text`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..two_tower import TwoTower
from . import open_clip_image, open_clip_text
from .archive import read_settings, read_tensors
from .base import SCALARS, ForeignModel, Pixels
from .names import to_ours, to_theirs, unnamed

CONFIG = "open_clip_config.json"
# In the order of open_clip's `_find_checkpoint_in_dir`.
FILES = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
# Written by older releases and by OpenAI; nothing is computed from them.
CONSTANTS = {"input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask"}
CONSTANTS |= {"text.transformer.embeddings.position_ids"}
KNOWN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
KNOWN |= {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}


def read_folder(folder: Path) -> ForeignModel:
    """Reads a folder with `open_clip_config.json` and weights.

    Raises:
        ValueError: a file is missing or unreadable, or the model has a part that ours has not.
    """
    content = read_settings(folder / CONFIG)
    names = [f"{name}{ending}" for name in FILES for ending in (".safetensors", ".bin", ".pth")]
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(
            f"{folder} has {CONFIG} and no weights: put open_clip_model.safetensors beside it"
        )
    return convert(
        content["model_cfg"], read_tensors(file), content.get("preprocess_cfg") or {}, str(folder)
    )


def convert_named(name: str, tensors: Mapping[str, Tensor]) -> ForeignModel:
    """Translates weights of an architecture that open_clip knows by name.

    Raises:
        ValueError: open_clip has no such architecture, or see `read_folder`.
    """
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        close = [known for known in open_clip.list_models() if name.lower() in known.lower()]
        raise ValueError(
            f"open_clip has no architecture '{name}'"
            + (f"; did you mean {' or '.join(close[:3])}?" if close else "")
        )
    return convert(config, tensors, published_preprocess(name))


def published_preprocess(name: str) -> dict[str, Any]:
    """Returns how images are prepared for the published weights of an architecture.

    Where they differ among themselves, and where there are none, it is open_clip's default: a
    folder with its configuration says more than a file.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    found = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    keys = ("mean", "std", "interpolation", "resize_mode")
    choices = [{key: each[key] for key in keys if key in each} for each in found]
    return choices[0] if choices and all(each == choices[0] for each in choices) else {}


def convert(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    preprocess: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> ForeignModel:
    """Translates a model.

    Args:
        config: `model_cfg` of open_clip.
        tensors: its state dict.
        preprocess: `preprocess_cfg` of open_clip; its defaults are CLIP's.
        folder: where a tokenizer of its own would be.

    Raises:
        ValueError: a setting or tensor has no counterpart here.
    """
    if unknown := sorted(config.keys() - KNOWN):
        raise ValueError(
            f"the open_clip model has {', '.join(unknown)}, which our two towers have not: only "
            "models of an image and a text tower can be read"
        )
    state = {n.removeprefix("module."): v for n, v in tensors.items()}
    state = {n: v for n, v in state.items() if n not in CONSTANTS}
    quick, embed_dim = bool(config.get("quick_gelu")), int(config["embed_dim"])
    pixels = pixels_of(preprocess or {}, config["vision_cfg"].get("image_size", 224))
    prefix = "text." if any(n.startswith("text.") for n in state) else ""
    image = open_clip_image.part(config["vision_cfg"], quick, state, pixels)
    text = open_clip_text.part(config["text_cfg"], quick, embed_dim, state, prefix, folder)
    rules = [*image.rules, *text.rules]
    weights = to_ours(rules, state) | image.constants
    weights |= {name: state[name].reshape(1) for name in SCALARS if name in state}
    if left := [n for n in unnamed(rules, state) if n not in SCALARS]:
        raise ValueError(
            f"the open_clip weights hold {len(left)} tensors that the configuration has no place "
            f"for ({', '.join(left[:3])}): name the architecture that they are of"
        )
    model = {"embed_dim": embed_dim, "image": image.config, "text": text.config}
    for name, projection in (("image", image.projection), ("text", text.projection)):
        if projection != "linear":
            model[f"{name}_projection"] = projection
    return ForeignModel("open_clip", model, weights, pixels, text.tokenizer, text.context_length)


def pixels_of(preprocess: Mapping[str, Any], image_size: int | list[int]) -> Pixels:
    """How images are prepared; keys that are missing are at open_clip's defaults.

    Raises:
        ValueError: the images are not square.
    """
    size = preprocess.get("size") or image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(
            f"the open_clip model takes images of {size} pixels: only squares are made"
        )
    defaults = Pixels(sides.pop())
    return Pixels(
        defaults.image_size,
        tuple(preprocess.get("mean") or defaults.mean),
        tuple(preprocess.get("std") or defaults.std),
        preprocess.get("interpolation") or defaults.interpolation,
        preprocess.get("resize_mode") or defaults.resize,
        fill=preprocess.get("fill_color") or defaults.fill,
    )


def to_open_clip(
    model: TwoTower, end_id: int | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns open_clip's `model_cfg` and state dict of a model of ours.

    Args:
        model: of towers that open_clip has.
        end_id: the tokenizer's end-of-text token, if it isn't the largest id of each caption (as
            that of CLIP's is).

    Raises:
        ValueError: open_clip has no such tower; the message says what would be lost.
    """
    image = open_clip_image.to_theirs(model)
    text = open_clip_text.to_theirs(model, end_id)
    if image.quick_gelu is not None and image.quick_gelu != text.quick_gelu:
        raise ValueError(
            "open_clip has one activation for both towers, and one of ours has quick_gelu: export "
            "to another layout"
        )
    dim = open_clip_image.state_dim(model.image_projection, model.image.width)
    config = {"embed_dim": dim, "vision_cfg": image.config, "text_cfg": text.config}
    if text.quick_gelu:
        config["quick_gelu"] = True
    if text.prefix:
        config["custom_text"] = True
    if model.logit_bias is not None:
        config["init_logit_bias"] = float(model.logit_bias)
    tensors = to_theirs(image.rules, image.tensors) | to_theirs(text.rules, text.tensors)
    state = model.state_dict()
    return config, tensors | {n: state[n].reshape(()) for n in SCALARS if n in state}
