"""`--to datacomp`: one file of open_clip's tensors, as DataComp's evaluation loads a checkpoint.

It makes the model by the name of an architecture that open_clip knows, and prepares images as
OpenAI's CLIP does: models of other sizes have no such file.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ...data.text.tokenize import ClipTokenizer
from ...models.image import OPENAI_MEAN, OPENAI_STD
from .open_clip import ReloadedOpenClip, preparation, translate
from .source import Source
from .target import Reloaded, Target

PROGRAM = """\
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms(
    "{architecture}", pretrained="{path}"
)
tokenizer = open_clip.get_tokenizer("{architecture}")
"""


class DataComp(Target):
    name = "datacomp"
    packages: Mapping[str, str] = {"open_clip": "open_clip_torch"}
    needs = ("open_clip_torch",)
    suffix = ".pt"
    library = "open_clip"

    def __init__(self) -> None:
        self.architecture = ""

    def write(self, source: Source, path: Path) -> list[str]:
        model, tensors = translate(source)
        check_preparation(source)
        self.architecture = architecture(model)
        whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        torch.save({"name": self.architecture, "state_dict": whole}, path)
        return []

    def reload(self, source: Source, path: Path) -> Reloaded:
        return ReloadedOpenClip(source, self.architecture, str(path))

    def program(self, source: Source, path: str) -> str:
        return PROGRAM.replace("{path}", path).replace("{architecture}", self.architecture)


def architecture(config: Mapping[str, Any]) -> str:
    """Returns the name under which open_clip knows a configuration.

    Raises:
        ValueError: there is none.
    """
    import open_clip

    wanted = _whole(config)
    for name in open_clip.list_models():
        known = open_clip.get_model_config(name) or {}
        if "multimodal_cfg" not in known and _whole(known) == wanted:
            return name
    raise ValueError(
        "DataComp's evaluation makes models by the name of an architecture of open_clip, and none "
        "has these sizes (ViT-B-32, ViT-B-16 and ViT-L-14 are model/vit_b32, vit_b16 and vit_l14 "
        "here); export --to open_clip"
    )


def _whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration with open_clip's defaults."""
    import open_clip

    vision, text = (dict(config.get(f"{side}_cfg") or {}) for side in ("vision", "text"))
    return {
        "embed_dim": config.get("embed_dim"),
        "quick_gelu": bool(config.get("quick_gelu")),
        "custom_text": bool(config.get("custom_text")),
        "init_logit_bias": config.get("init_logit_bias") is not None,
        "vision_cfg": asdict(open_clip.CLIPVisionCfg(**vision)),
        "text_cfg": asdict(open_clip.CLIPTextCfg(**text)),
    }


def check_preparation(source: Source) -> None:
    """Refuses models that read images or texts otherwise than OpenAI's CLIP."""
    how = preparation(source)
    numbers = [*how["mean"], *how["std"]]
    usual = all(abs(a - b) < 1e-5 for a, b in zip(numbers, OPENAI_MEAN + OPENAI_STD, strict=True))
    if not usual or (how["resize_mode"], how["interpolation"]) != ("shortest", "bicubic"):
        raise ValueError(
            "DataComp's evaluation prepares images as OpenAI's CLIP does (its mean and standard "
            "deviation, bicubic, the middle of the shorter side), and the run otherwise; export "
            "--to open_clip"
        )
    if not isinstance(source.run.tokenizer, ClipTokenizer):
        raise ValueError(
            "DataComp's evaluation reads texts with CLIP's tokenizer, and the run with another; "
            "export --to open_clip"
        )
