"""Resizing, moving and recolouring pixels.

In: pixels [3, h, w] and plain numbers. Out: new pixels; nothing is random here.
"""

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bicubic", "bilinear"]
# Luma of ITU-R BT.601, as Pillow and torchvision turn colour to grey.
LUMA = np.array([0.299, 0.587, 0.114])
GREY = np.tile(LUMA, (3, 1))
_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def resize(
    image: Tensor, height: int, width: int, interpolation: Interpolation = "bicubic"
) -> Tensor:
    """Resizes uint8 [3, h, w] with antialiased filtering, without leaving uint8."""
    if image.shape[-2:] == (height, width):
        return image
    # numpy copies a crop row by row, torch pixel by pixel.
    pixels = torch.from_numpy(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    # The fast kernel is the one for channels-last memory, as images are decoded. The batch axis
    # has to come first: torch recognises the memory format by its stride.
    batch = pixels[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=(height, width), mode=interpolation, antialias=True)[0]


def move(
    pixels: Tensor,
    degrees: float,
    shift: tuple[float, float] = (0.0, 0.0),
    fill: float = 255,
    mirrored: bool = False,
) -> Tensor:
    """Mirrors, rotates about the centre, then shifts; bilinear.

    Args:
        pixels: float [3, size, size].
        degrees: counter-clockwise.
        shift: to the right and down, as fractions of the side.
        fill: grey level of the uncovered parts.
        mirrored: whether left and right are swapped first.
    """
    size = pixels.shape[-1]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    right, down = 2 * shift[0], 2 * shift[1]
    side = -1.0 if mirrored else 1.0
    # Maps each pixel (x, y, 1) of the result to its origin in the original.
    matrix = np.array(
        [
            [side * cosine, sine],
            [side * -sine, cosine],
            [side * (sine * down - cosine * right), -sine * right - cosine * down],
        ],
        dtype=np.float32,
    )
    grid = (_coordinates(size) @ torch.from_numpy(matrix)).view(1, size, size, 2)
    # Outside is zero, so the image is sampled as its difference from the fill.
    moved = F.grid_sample((pixels - fill)[None], grid, mode="bilinear", align_corners=False)
    return moved[0].add_(fill)


@lru_cache(maxsize=8)
def _coordinates(size: int) -> Tensor:
    """Returns (x, y, 1) of the pixel centres in -1..1, row by row: float [size * size, 3]."""
    axis = torch.arange(1 - size, size, 2, dtype=torch.float32) / size
    columns, rows = axis.expand(size, size), axis[:, None].expand(size, size)
    return torch.stack((columns, rows, torch.ones(size, size)), dim=-1).view(-1, 3)


def map_colours(pixels: Tensor, matrix: np.ndarray, offset: float) -> Tensor:
    """Applies `matrix @ rgb + offset` to float [3, h, w], without rounding or clamping."""
    weights = torch.from_numpy(matrix.astype(np.float32))
    mapped = weights @ pixels.reshape(3, -1)
    return (mapped.add_(offset) if offset else mapped).view(pixels.shape)


def hue_rotation(angle: float) -> np.ndarray:
    """Returns the colour matrix [3, 3] that turns hues by an angle (radians) and keeps the luma.

    From red towards green; a rotation of the chroma plane of YIQ: one matrix instead of the way
    through HSV and back.
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    return _FROM_YIQ @ np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]) @ _TO_YIQ
