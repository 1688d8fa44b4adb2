"""OpenAI's CLIP: a TorchScript archive as published, or its state dict.

In: tensors. Out: a `ForeignModel`; the architecture follows from the tensors' shapes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from .base import ForeignModel
from .open_clip import convert

# Only OpenAI's own files hold them.
MARKS = {"input_resolution", "context_length", "vocab_size"}


def is_openai(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is OpenAI's; open_clip's files have the same names without the marks."""
    return tensors.keys() >= MARKS


def convert_openai(tensors: Mapping[str, Tensor]) -> ForeignModel:
    """Translates a state dict in OpenAI's layout.

    Raises:
        ValueError: it is another one.
    """
    try:
        config = architecture(tensors)
    except KeyError as error:
        raise ValueError(
            f"the weights are not in the layout of OpenAI's CLIP: they have no {error}"
        ) from error
    return replace(convert(config, tensors), family="OpenAI CLIP")


def architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns open_clip's `model_cfg` of these tensors; heads are 64 wide in all of OpenAI's."""
    if "visual.proj" in tensors:
        width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
        grid = round((len(tensors["visual.positional_embedding"]) - 1) ** 0.5)
        vision = {
            "layers": _count(tensors, "visual.transformer.resblocks."),
            "width": width,
            "patch_size": patch_size,
            "image_size": grid * patch_size,
        }
    else:
        grid = round((len(tensors["visual.attnpool.positional_embedding"]) - 1) ** 0.5)
        vision = {
            "layers": [_count(tensors, f"visual.layer{stage}.") for stage in range(1, 5)],
            "width": len(tensors["visual.layer1.0.conv1.weight"]),
            "image_size": grid * 32,
        }
    vocab_size, width = tensors["token_embedding.weight"].shape
    text = {
        "context_length": len(tensors["positional_embedding"]),
        "vocab_size": vocab_size,
        "width": width,
        "heads": width // 64,
        "layers": _count(tensors, "transformer.resblocks."),
    }
    embed_dim = tensors["text_projection"].shape[1]
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, "quick_gelu": True}


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    numbers = (name.removeprefix(prefix).split(".")[0] for name in tensors if prefix in name[:40])
    return len({number for number in numbers if number.isdigit()})
