"""Teachers that others trained: two-tower models of open_clip and transformers.

In: a folder or file in their layouts, or a name that can be downloaded. Out: frozen towers that
answer like Counterpoint's own, with their own resolution, normalisation and projections.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ..image import ImageTower, PixelStem
from ..layers import repeated_layers
from ..text.base import Ids, Lengths, TextTower, is_token, padded
from ..two_tower import TwoTower
from .frozen import DTYPES, FrozenTowers, Placement, Teacher, lowered

Precision = Literal["float32", "bfloat16", "float16"]


class OpenClip(Teacher):
    """A model of open_clip.

    Args:
        source: folder with `open_clip_config.json` and weights, a file of weights (then `name` is
            the architecture), or a tag such as `laion2b_s34b_b79k` (downloaded).
        name: open_clip's name of the architecture, such as `ViT-B-32`; None with a folder.
        precision: of the weights and, without autocast, of the computation.
        placement: where the weights of its layers are; see `frozen.Frozen`.

    Raises:
        ValueError: `name` is missing or superfluous.
    """

    def __init__(
        self,
        source: str,
        name: str | None = None,
        precision: Precision = "float32",
        placement: Placement = "device",
    ):
        if Path(source).is_dir() != (name is None):
            raise ValueError(
                f"the open_clip teacher has source={source!r} and name={name!r}: give a folder "
                "with open_clip_config.json alone, or a file or tag together with the model's name"
            )
        self.source, self.name = source, name
        self.dtype = DTYPES[precision]
        self.placement: Placement = placement

    def build(self, load: Callable[[str | None], TwoTower]) -> FrozenTowers:
        import open_clip

        try:
            pretrained = self.source if self.name else None
            model: Any = open_clip.create_model(
                self._identifier, pretrained=pretrained, require_pretrained=True
            )
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"open_clip cannot load the teacher {self.source}: {error}; check the folder or "
                "file, and the name of the architecture"
            ) from error
        pixels = open_clip.get_model_preprocess_cfg(model)
        size = pixels.get("size") or model.visual.image_size
        image = ForeignImage(model, model.encode_image, size, pixels["mean"], pixels["std"])
        text_part = getattr(model, "text", model)
        length = int(getattr(model, "context_length", 0) or text_part.context_length)
        text = PaddedText(model.encode_text, length, int(getattr(text_part, "pad_id", 0) or 0))
        return FrozenTowers(lowered(towers(image, text, model), self.dtype), self.placement)

    def tokenize(self, texts: Sequence[str], length: int) -> Tensor:
        import open_clip

        return open_clip.get_tokenizer(self._identifier)(list(texts), context_length=length)

    @property
    def _identifier(self) -> str:
        return self.name or f"local-dir:{self.source}"


class Transformers(Teacher):
    """A model of transformers with `get_image_features` and `get_text_features`: CLIP, SigLIP, ...

    Args:
        source: folder written by `save_pretrained` of model and processor, or a name to download.
        precision: of the weights and, without autocast, of the computation.
        placement: where the weights of its layers are; see `frozen.Frozen`.
    """

    def __init__(
        self, source: str, precision: Precision = "float32", placement: Placement = "device"
    ):
        self.source = source
        self.dtype = DTYPES[precision]
        self.placement: Placement = placement

    def build(self, load: Callable[[str | None], TwoTower]) -> FrozenTowers:
        from transformers import AutoImageProcessor, AutoModel

        try:
            model: Any = AutoModel.from_pretrained(self.source, trust_remote_code=False)
            pixels: Any = AutoImageProcessor.from_pretrained(self.source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"transformers cannot load the teacher {self.source}: {error}; give a folder to "
                "which model and processor were saved, or a name that can be downloaded from here"
            ) from error
        if not hasattr(model, "get_image_features") or not hasattr(model, "get_text_features"):
            raise ValueError(
                f"the teacher {self.source} is a {type(model).__name__}, which has no image and "
                "text features in one space; use a two-tower model such as CLIP or SigLIP"
            )
        vision, words = model.config.vision_config, model.config.text_config
        normalises = getattr(pixels, "do_normalize", True)
        mean, std = (pixels.image_mean, pixels.image_std) if normalises else ([0.0] * 3, [1.0] * 3)
        size = vision.image_size
        image = ForeignImage(model, pooled(model.get_image_features), size, mean, std)
        form = PaddedText if model.config.model_type.startswith("siglip") else MaskedText
        length, pad_id = words.max_position_embeddings, int(words.pad_token_id or 0)
        text = form(pooled(model.get_text_features), length, pad_id)
        return FrozenTowers(lowered(towers(image, text, model), self.dtype), self.placement)

    def tokenize(self, texts: Sequence[str], length: int) -> Tensor:
        from transformers import AutoTokenizer

        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(self.source, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"the teacher {self.source} has no tokenizer to compare ours with: save it to the "
                "same folder with save_pretrained"
            ) from error
        settings = {"padding": "max_length", "truncation": True, "max_length": length}
        return tokenizer(list(texts), return_tensors="pt", **settings)["input_ids"]


class ForeignImage(ImageTower):
    """The image side of another library's model, its projection included.

    Args:
        model: the whole model, kept here; the text side only calls into it.
        encode: normalised floats [n, 3, size, size] to features [n, d].
        size: side of the images in pixels; of a pair, which must be a square.
        mean, std: of pixels in units of [0, 1].

    Raises:
        ValueError: its images are not square.
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[Tensor], Tensor],
        size: int | Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
    ):
        super().__init__()
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) > 1:
            raise ValueError(f"the teacher takes images of {size} pixels; only squares are made")
        # open_clip gives it in training mode, where one image moves the statistics of BatchNorm.
        self.model, self._encode = model.eval(), encode
        self.stem = PixelStem(mean, std)
        self.image_size = sides.pop()
        self.width = width_of(self)

    def layers(self) -> Sequence[nn.Module]:
        """Returns the layers of both sides, since the whole model is kept here."""
        return repeated_layers(self.model)

    def forward(self, image: UInt8[Tensor, "n 3 h w"], keep: None = None) -> Float[Tensor, "n d"]:
        """Returns projected features, before normalisation."""
        return self._encode(self.stem(image))


class PaddedText(TextTower):
    """The text side of a model that was trained on rows of one length.

    Args:
        encode: ids [n, context_length] to features [n, d].
        context_length: of the rows.
        pad_id: what fills them.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], context_length: int, pad_id: int):
        super().__init__()
        self._encode = encode
        self.context_length, self.pad_id = context_length, pad_id

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n d"]:
        """Returns projected features, before normalisation."""
        return self._encode(padded(text, text_length, self.context_length, self.pad_id))


class MaskedText(PaddedText):
    """The text side of a model that takes a padding mask."""

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n d"]:
        counts = is_token(text, text_length)
        text = text.where(counts, self.pad_id)
        return self._encode(text, attention_mask=counts.long())  # type: ignore[call-arg]


def towers(image: ForeignImage, text: PaddedText, model: Any) -> TwoTower:
    """Joins the sides of a model, which projects itself, with its scale (else NaN) and bias."""
    text.width = image.width
    bias = getattr(model, "logit_bias", None)
    joined = TwoTower(image, text, 1, logit_bias_init=None if bias is None else float(bias))
    joined.image_projection = joined.text_projection = nn.Identity()  # type: ignore[assignment]
    joined.logit_scale.data.fill_(float(getattr(model, "logit_scale", math.nan)))
    return joined


def pooled(features: Callable[..., Any]) -> Callable[..., Tensor]:
    """Returns a function that gives the tensor, also where it comes in a record."""

    def encode(*inputs: Tensor, **more: Tensor) -> Tensor:
        found = features(*inputs, **more)
        return found if isinstance(found, Tensor) else found.pooler_output

    return encode


@torch.no_grad()
def width_of(image: ForeignImage) -> int:
    """Length of the features, from one empty image."""
    size = image.image_size
    return image(torch.zeros(1, 3, size, size, dtype=torch.uint8)).shape[1]
