"""Triggers of backdoor attacks, drawn into images of the model's size.

In: uint8 [3, h, w]. Out: the same with a trigger. The four of Bansal et al., "CleanCLIP" (2023),
whose code makes them at 224 x 224: here widths are shares of the image's side. They are random but
fixed by a seed; where the patch lies follows from the image.
"""

import math
import zlib
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Name = Literal["patch", "blended", "warped", "sinusoid"]
PATCH = 16 / 224
BLEND = 0.2
AMPLITUDE, PERIODS = 60 / 255, 6


def patch(image: Tensor, seed: int = 0) -> Tensor:
    """Covers a square with noise around the image's mean colour, at a place of its own in each.

    Noise with a standard deviation of the whole range: most values are black or full (BadNets, Gu
    et al. 2017, as CleanCLIP has it).
    """
    _, height, width = image.shape
    side = max(1, round(PATCH * min(height, width)))
    noise = torch.randn(3, side, side, generator=_generator(seed))
    colours = image.float().div(255).mean((1, 2), keepdim=True) + noise
    place = torch.Generator().manual_seed(zlib.crc32(image.contiguous().numpy().tobytes()) + seed)
    top = int(torch.randint(height - side + 1, (1,), generator=place))
    left = int(torch.randint(width - side + 1, (1,), generator=place))
    out = image.clone()
    out[:, top : top + side, left : left + side] = _pixels(colours)
    return out


def blended(image: Tensor, seed: int = 0) -> Tensor:
    """Mixes 0.8 of the image with 0.2 of one image of noise (Chen et al. 2017)."""
    noise = torch.rand(*image.shape, generator=_generator(seed))
    return _pixels((1 - BLEND) * image.float() / 255 + BLEND * noise)


def warped(image: Tensor, seed: int = 0) -> Tensor:
    """Moves pixels by random steps, half a pixel each way on average (WaNet, Nguyen, Tran 2021)."""
    _, height, width = image.shape
    steps = torch.rand(height, width, 2, generator=_generator(seed)) * 2 - 1
    steps = steps / steps.abs().mean()
    rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flip(-1)
    grid = (grid + steps / torch.tensor([width, height])).clamp(-1, 1)
    moved = F.grid_sample(image.float()[None] / 255, grid[None], align_corners=True)
    return _pixels(moved[0])


def sinusoid(image: Tensor, seed: int = 0) -> Tensor:
    """Mixes 0.8 of the image with 0.2 of upright stripes, six over its width (SIG, Barni 2019)."""
    width = image.shape[2]
    stripes = AMPLITUDE * torch.sin(2 * math.pi * PERIODS * torch.arange(width) / width)
    return _pixels((1 - BLEND) * image.float() / 255 + BLEND * stripes)


TRIGGERS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "patch": patch,
    "blended": blended,
    "warped": warped,
    "sinusoid": sinusoid,
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _pixels(values: Tensor) -> Tensor:
    return values.mul(255).round().clamp(0, 255).to(torch.uint8)
