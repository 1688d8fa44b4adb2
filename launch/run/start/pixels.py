"""How a model of another library wants its images, as the transform that makes them.

In: `Pixels`, plain values. Out: an `EvalTransform`, or what another transform does differently;
mean and standard deviation are the tower's.
"""

import json
from dataclasses import asdict

import torch
from torch.nn import functional as F

from ....data.images.transforms import EvalTransform, Transform
from ....models.interop.base import Pixels

# Torch and Pillow, and two versions of either, may round apart.
ALIKE = 1


def eval_transform_of(pixels: Pixels) -> EvalTransform:
    """Returns the transform of evaluation; its images get the side `pixels.image_size`."""
    p = pixels
    return EvalTransform(p.resize, p.crop, p.fill, p.interpolation, p.centre)


def levels_apart(first: Transform, second: Transform, size: int) -> int:
    """Returns the largest difference in grey levels of what two transforms make of test images."""
    generator = torch.Generator().manual_seed(0)
    worst = 0
    for height, width in ((3 * size // 2, 2 * size), (5 * size // 2 + 1, size)):
        coarse = 64 + 128 * torch.rand(1, 3, 12, 12, generator=generator)
        image = F.interpolate(coarse, (height, width), mode="bilinear")[0].to(torch.uint8)
        apart = first(image, size, None).int() - second(image, size, None).int()
        worst = max(worst, int(apart.abs().max()))
    return worst


def preprocessing_mismatch(pixels: Pixels, transform: Transform) -> str:
    """Compares a transform with the one that weights were trained with, on two test images.

    Returns:
        A phrase with the configuration that would be the same; "" if they do the same.
    """
    worst = levels_apart(eval_transform_of(pixels), transform, pixels.image_size)
    if worst <= ALIKE:
        return ""
    values = {name: asdict(pixels)[name] for name in ("resize", "crop", "fill", "interpolation")}
    kind = f"{EvalTransform.__module__}.{EvalTransform.__qualname__}"
    value = {"class_path": kind, "init_args": values | {"centre": pixels.centre}}
    return (
        f"evaluation prepares images otherwise (a test image differs by up to {worst} of 255 grey "
        f"levels): data.eval_transform: {json.dumps(value)} does as there"
    )
