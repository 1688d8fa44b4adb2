"""Image towers: uint8 pixels in, one pooled vector an image out.

Pixels travel to the device as uint8; the stem here turns them into normalised floats.
"""

from collections.abc import Sequence
from typing import Any

import timm
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


class PixelStem(nn.Module):
    """Normalises uint8 pixels channel by channel; mean and std are in units of [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        shape = (1, len(mean), 1, 1)
        self.register_buffer("mean", torch.tensor(mean).view(shape) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(shape) * 255, persistent=False)

    def forward(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """Returns (pixels - mean) / std in the buffers' dtype."""
        # Loaders hand over channels last. In one layout, sums run in one order.
        pixels = image.to(self.mean.dtype, memory_format=torch.contiguous_format)
        return (pixels - self.mean) / self.std


class ImageTower(nn.Module):
    """What an image tower must offer: `forward(uint8 [n, 3, h, w]) -> [n, width]`.

    Attributes:
        width: length of the pooled vector.
        image_size: side of the square input in pixels.
    """

    width: int
    image_size: int


class TimmTower(ImageTower):
    """Any timm model as image tower.

    Args:
        name: timm's model name, for example `vit_base_patch16_224`.
        image_size: side of the square input in pixels.
        mean, std: pixel statistics in units of [0, 1] (default: OpenAI CLIP's).
        model_args: further keyword arguments of the timm model (`embed_dim`, `depth`, ...).

    Attributes:
        width: length of the pooled vector.
    """

    def __init__(
        self,
        name: str,
        image_size: int = 224,
        mean: tuple[float, float, float] = OPENAI_MEAN,
        std: tuple[float, float, float] = OPENAI_STD,
        model_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        if not timm.is_model(name):
            close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:5])
            raise ValueError(f"timm has no model '{name}'; names that look like it: {close}")
        sized = {"img_size": image_size} if "vit" in name else {}
        self.trunk = timm.create_model(name, num_classes=0, **sized, **(model_args or {}))
        self.stem = PixelStem(mean, std)
        self.image_size = image_size
        self.width: int = self.trunk.num_features  # type: ignore[assignment]

    def forward(self, image: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n width"]:
        """Returns the pooled vector of each image, before projection and normalisation."""
        return self.trunk(self.stem(image))
