"""The two-tower model: a batch in, named features out.

Features are `image` and `text` (normalised), `image.raw` and `text.raw` (after projection, before
normalisation), `logit_scale` (multiplicative) and `logit_bias`. Further views (`image.strong_1`,
`text.negative`) are batch entries of the same name, encoded by the tower of their first word.
"""

import math
from collections.abc import Iterable, Mapping
from typing import cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from .image import ImageTower
from .text import TextTower

MAX_LOGIT_SCALE = 100.0


class TwoTower(nn.Module):
    """An image tower and a text tower, each with a bias-free projection into one space.

    `logit_scale` (stored as its logarithm) and `logit_bias` are 1-D, so that sharded strategies can
    hold them.

    Args:
        image: image tower: `forward(uint8 pixels) -> [n, width]`, with `width` and `image_size`.
        text: text tower: `forward(ids, lengths) -> [n, width]`, with `width`, `context_length`.
        embed_dim: length of the shared embedding.
        logit_scale_init: multiplicative scale at the start (comes from the objective).
        logit_bias_init: bias at the start; None: no bias (comes from the objective).
    """

    def __init__(
        self,
        image: ImageTower,
        text: TextTower,
        embed_dim: int = 512,
        logit_scale_init: float = 1 / 0.07,
        logit_bias_init: float | None = None,
    ):
        super().__init__()
        self.image = image
        self.text = text
        self.image_projection = _projection(cast(int, image.width), embed_dim)
        self.text_projection = _projection(cast(int, text.width), embed_dim)
        self.logit_scale = nn.Parameter(torch.full((1,), math.log(logit_scale_init)))
        self.logit_bias = (
            None if logit_bias_init is None else nn.Parameter(torch.full((1,), logit_bias_init))
        )
        self.text.borrow(self)

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return cast(int, self.image.image_size)

    @property
    def context_length(self) -> int:
        """Longest caption in tokens."""
        return cast(int, self.text.context_length)

    def forward(
        self, batch: Mapping[str, Tensor], needs: Iterable[str] = ("image", "text")
    ) -> dict[str, Tensor]:
        """Computes the union of what is needed, each view once.

        Args:
            batch: `image*` are uint8 [n, 3, h, w]; `text*` int64 [n, tokens] with `text*_length`.
            needs: names of features; names the model does not make are left to others.
        """
        features = {"logit_scale": self.logit_scale.exp()}
        if self.logit_bias is not None:
            features["logit_bias"] = self.logit_bias
        views = dict.fromkeys(name.removesuffix(".raw") for name in sorted(needs))
        for view in views:
            tower = view.split(".")[0]
            if tower == "image":
                raw = self.project_image(batch[view])
            elif tower == "text":
                raw = self.project_text(batch[view], batch[f"{view}_length"])
            else:
                continue
            features[f"{view}.raw"] = raw
            features[view] = F.normalize(raw.float() if raw.dtype.itemsize < 4 else raw, dim=-1)
        return features

    def project_image(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Image embeddings before normalisation."""
        return self.image_projection(self.image(image))

    def project_text(
        self, text: Int64[Tensor, "n tokens"], text_length: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Text embeddings before normalisation."""
        return self.text_projection(self.text(text, text_length))

    def encode_image(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Normalised image embeddings in float32 (or float64)."""
        return self({"image": image}, ("image",))["image"]

    def encode_text(
        self, text: Int64[Tensor, "n tokens"], text_length: Int64[Tensor, " n"]
    ) -> Float[Tensor, "n d"]:
        """Normalised text embeddings in float32 (or float64)."""
        return self({"text": text, "text_length": text_length}, ("text",))["text"]

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keeps the multiplicative scale within [1, 100]; to be called after the optimiser step."""
        self.logit_scale.clamp_(0.0, math.log(MAX_LOGIT_SCALE))


def _projection(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim, bias=False)
    nn.init.normal_(linear.weight, std=width**-0.5)
    return linear
