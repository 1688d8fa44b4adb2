"""The transform of views that are compared with one another: jitter at times, blur, solarization.

In: an `EncodedImage` and the generator of this sample. Out: uint8 [3, size, size]. Chen et al., "A
Simple Framework for Contrastive Learning of Visual Representations" (SimCLR, 2020), appendix A;
solarization: Grill et al., "Bootstrap Your Own Latent" (BYOL, 2020), appendix B. The constants of
the authors' code:

| | scale | jitter: brightness, contrast, saturation, hue | grayscale | blur | solarize | flip |
| --- | --- | --- | --- | --- | --- | --- |
| SimCLR (ImageNet) | 0.08 | 0.8: 0.8, 0.8, 0.8, 0.2 | 0.2 | 0.5 | 0 | 0.5 |
| BYOL, the first view | 0.08 | 0.8: 0.4, 0.4, 0.2, 0.1 | 0.2 | 1.0 | 0 | 0.5 |
| BYOL, the second view | 0.08 | 0.8: 0.4, 0.4, 0.2, 0.1 | 0.2 | 0.1 | 0.2 | 0.5 |
| SLIP | 0.08 | 0.8: 0.4, 0.4, 0.4, 0.1 | 0.2 | 0.5 | 0 | 0.5 |
| A-CLIP, both views | 0.5 | 0.8: 0.4, 0.4, 0.2, 0.1 | 0.2 | 0.1 | 0.2 | 0 |
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .decode import EncodedImage
from .transforms import NEUTRAL_COLOURS, Range, Rng, TrainTransform

SOLARIZED_FROM = 128  # grey level


class ViewTransform(TrainTransform):
    """`TrainTransform`, whose colours are changed at times only; then blurred, then solarized.

    `draw` gives the columns of `TrainTransform`, the standard deviation of the `blur` in pixels of
    the view (0: none), and whether levels from 128 on are inverted (`solarize`, 0 or 1).

    Args:
        jitter: probability of changing brightness, contrast, saturation and hue at all.
        blur: probability of a Gaussian blur.
        blur_sigma: range of its standard deviation, in pixels of the view; the usual one is for
            views of 224 pixels.
        solarize: probability of inverting levels from 128 on.
        crop: of `TrainTransform`.

    Raises:
        ValueError: a value is outside its range.
    """

    columns = (*TrainTransform.columns, "blur", "solarize")

    def __init__(
        self,
        jitter: float = 0.8,
        blur: float = 0.0,
        blur_sigma: Range = (0.1, 2.0),
        solarize: float = 0.0,
        **crop: Any,
    ):
        super().__init__(**crop)
        for name, value in {"jitter": jitter, "blur": blur, "solarize": solarize}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1")
        if not 0 < blur_sigma[0] <= blur_sigma[1]:
            raise ValueError(f"blur_sigma={tuple(blur_sigma)} must be rising, above 0")
        self.jitter, self.blur, self.blur_sigma = jitter, blur, blur_sigma
        self.solarize = solarize

    def draw(
        self, height: int, width: int, rng: Rng, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        params = super().draw(height, width, rng, others)
        assert rng is not None
        u = rng.random(4).tolist()
        if u[0] >= self.jitter:
            first = self.columns.index("brightness")
            params[first : first + 4] = NEUTRAL_COLOURS[:4]
        low, high = self.blur_sigma
        sigma = low + (high - low) * u[2] if u[1] < self.blur else 0.0
        return np.array([*params, sigma, u[3] < self.solarize])

    def apply(self, image: EncodedImage, size: int, params: np.ndarray) -> Tensor:
        num_before = len(TrainTransform.columns)
        result = super().apply(image, size, params[:num_before])
        sigma, is_solarized = params[num_before:].tolist()
        if sigma:
            result = blurred(result, sigma)
        if is_solarized:
            result = torch.where(result >= SOLARIZED_FROM, 255 - result, result)
        return result


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Blurs uint8 [3, h, w] by a Gaussian of three standard deviations; edges are mirrored."""
    radius = min(math.ceil(3 * sigma), *(side - 1 for side in image.shape[1:]))
    weights = torch.arange(-radius, radius + 1).div(sigma).square().mul(-0.5).exp()
    weights /= weights.sum()
    pixels = F.pad(image.float()[:, None], [radius] * 4, mode="reflect")
    pixels = F.conv2d(F.conv2d(pixels, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return pixels[:, 0].add_(0.5).clamp_(0, 255).to(torch.uint8)
