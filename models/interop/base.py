"""A model of another library in our terms: a configuration, and weights under our names.

In: what a family's file has translated. Out: a `TwoTower`, or what a run file needs to make one.
"""

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..image import OPENAI_MEAN, OPENAI_STD
from ..two_tower import TwoTower
from ..weights import load_weights

TIMM_TOWER = "counterpoint.models.image.TimmTower"
CLIP_TEXT = "counterpoint.models.text.clip.ClipTextTower"
SIGLIP_TEXT = "counterpoint.models.text.siglip.SiglipTextTower"
HF_TEXT = "counterpoint.models.text.hf.HFTextTower"
CLIP_TOKENIZER = "counterpoint.data.text.tokenize.ClipTokenizer"
HF_TOKENIZER = "counterpoint.data.text.tokenize.HFTokenizer"
SCALARS = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class Pixels:
    """How a model wants its images: what `EvalTransform` and the tower's stem are made with.

    Attributes:
        image_size: side of the square in pixels.
        mean, std: by channel, in units of [0, 1].
        interpolation: of the resizing, antialiased.
        resize: `shortest` scales the shorter side and cuts the middle, `squash` scales both sides,
            `longest` scales the longer side and pads.
        crop: but with `longest`, the side of the cut as a fraction of the scaled (shorter) side.
        fill: with `longest`, the grey level of the padding.
        centre: of a cut half a pixel beside the middle: at the `even` place, or `up` and left.
    """

    image_size: int
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize: Literal["shortest", "squash", "longest"] = "shortest"
    crop: float = 1.0
    fill: int = 0
    centre: Literal["even", "up"] = "even"


@dataclass(frozen=True)
class ForeignModel:
    """A model of another library in our terms.

    Attributes:
        family: whose it is, for messages: `open_clip`, `OpenAI CLIP`, `transformers CLIPModel`.
        config: value of a run file's `model:`; without `image` or `text` where the source has one
            tower only.
        weights: tensors under our names (`image.trunk...`, `text_projection.weight`,
            `logit_scale`), in the source's precision.
        pixels: how images are prepared; None without an image tower.
        tokenizer: value of `data.tokenizer` in a run file; None without a text tower.
        context_length: longest caption in tokens; None without a text tower.
    """

    family: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    pixels: Pixels | None = None
    tokenizer: dict[str, Any] | None = None
    context_length: int | None = None
    towers: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        towers = tuple(name for name in ("image", "text") if name in self.config)
        object.__setattr__(self, "towers", towers)

    def build(self) -> TwoTower:
        """Returns the model with its weights, on the CPU, in float32 and evaluation mode.

        Raises:
            ValueError: the source has one tower only, or weights and configuration do not fit.
        """
        if len(self.towers) < 2:
            raise ValueError(
                f"the {self.family} weights hold the {''.join(self.towers)} tower alone, and a "
                "two-tower model is wanted; start that tower of a run from them, with init_from"
            )
        model = TwoTower(**made(self.config), logit_bias_init=self._bias).eval()
        report = load_weights(model, self.weights, f"the {self.family} model")
        if report.missing or report.reshaped or report.unused:
            raise ValueError(
                f"weights and configuration of the {self.family} model do not fit: {report}"
            )
        return model

    @property
    def _bias(self) -> float | None:
        bias = self.weights.get("logit_bias")
        return None if bias is None else float(bias)


def made(config: Mapping[str, Any]) -> dict[str, Any]:
    """Builds what a configuration names by `class_path` and `init_args`; the rest stays."""
    # Random weights are about to be replaced: the caller's random numbers stay what they were.
    with torch.random.fork_rng(devices=[]):
        return {
            name: pkgutil.resolve_name(value["class_path"])(**value.get("init_args", {}))
            if isinstance(value, Mapping) and "class_path" in value
            else value
            for name, value in config.items()
        }
