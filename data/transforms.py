"""A decoded picture to the square the image tower sees, uint8 in and uint8 out.

In: uint8 [3, H, W] and the generator of this sample, from which all randomness comes. Out: uint8
[3, size, size]. Crop and resize are one antialiased bicubic pass on uint8; the rest runs on the
small result, and only if it is switched on. Every random quantity has its own draw, so switching
one operation on leaves the others as they were. Normalisation is the model's.
"""

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# Luma of ITU-R BT.601, as Pillow and torchvision turn colour to grey.
LUMA = np.array([0.299, 0.587, 0.114])
_IDENTITY = np.eye(3)
_GREY = np.tile(LUMA, (3, 1))
_TO_YIQ = np.array([LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)
CROP_TRIES = 10


class Transform(ABC):
    """A picture of any size to a square one."""

    @abstractmethod
    def __call__(self, image: Tensor, size: int, rng: np.random.Generator | None) -> Tensor:
        """Transforms one picture.

        Args:
            image: uint8 [3, H, W].
            size: Side of the result in pixels.
            rng: Source of all randomness; None is allowed where nothing is random.

        Returns:
            uint8 [3, size, size].
        """


class TrainTransform(Transform):
    """Random crop and resize, then the operations that are switched on, in the order given here.

    Args:
        scale: Range of the crop's share of the area.
        ratio: Range of the crop's width by height.
        flip: Probability of mirroring left and right.
        rotate: Largest rotation in degrees, either way.
        translate: Largest shift as a fraction of the side, in each direction.
        brightness: The factor is drawn from 1 - value .. 1 + value; likewise the next two.
        contrast: Blend with the mean grey.
        saturation: Blend with the grey picture.
        hue: Largest turn of the colours about the grey axis, as a fraction of a full turn.
        grayscale: Probability of dropping the colours.
        erase: Probability of filling a rectangle of 2-20% of the area.
        fill: Grey level of erased rectangles and of what rotation and shift uncover.

    Raises:
        ValueError: A value is outside its range.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.5, 1.0),
        ratio: tuple[float, float] = (0.75, 1.333),
        flip: float = 0.0,
        rotate: float = 0.0,
        translate: float = 0.0,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        erase: float = 0.0,
        fill: int = 255,
    ):
        for name, (low, high) in {"scale": scale, "ratio": ratio}.items():
            if not 0 < low <= high or (name == "scale" and high > 1):
                limit = " and at most 1" if name == "scale" else ""
                raise ValueError(f"{name}=({low}, {high}) must be rising, above 0{limit}")
        fractions = {
            "flip": flip,
            "translate": translate,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "grayscale": grayscale,
            "erase": erase,
        }
        for name, value in fractions.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value} must lie between 0 and 1")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue={hue} must lie between 0 and 0.5 (half a turn)")
        if not 0 <= rotate <= 180:
            raise ValueError(f"rotate={rotate} must lie between 0 and 180 degrees")
        if not 0 <= fill <= 255:
            raise ValueError(f"fill={fill} must lie between 0 and 255")
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.rotate, self.translate = rotate, translate
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.grayscale, self.erase, self.fill = hue, grayscale, erase, fill
        self._moves = bool(rotate or translate)
        self._colours = bool(brightness or contrast or saturation or hue or grayscale)

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator | None) -> Tensor:
        assert rng is not None, "training transforms need the sample's generator"
        crops = rng.random((CROP_TRIES, 4))
        draws = rng.random(14).tolist()
        height, width = image.shape[-2:]
        top, left, rows, columns = crop_box(height, width, self.scale, self.ratio, crops)
        result = resize(image[:, top : top + rows, left : left + columns], size, size)
        mirrored = draws[0] < self.flip
        if self._moves or self._colours:
            # One way through floats for all of them: rounded and clamped once, at the end.
            colours = self._colour_map(result, draws[4:9]) if self._colours else None
            pixels = result.float()
            if self._moves:
                angle, right, down = (2 * u - 1 for u in draws[1:4])
                shift = (right * self.translate, down * self.translate)
                pixels = move(pixels, angle * self.rotate, shift, self.fill, mirrored)
            elif mirrored:
                pixels = pixels.flip(-1)
            if colours:
                pixels = map_colours(pixels, *colours)
            result = pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)
        elif mirrored:
            result = result.flip(-1)
        if draws[9] < self.erase:
            result = self._erase(result, draws[10:14])
        return result

    def _colour_map(self, image: Tensor, draws: list[float]) -> tuple[np.ndarray, float]:
        """Draws brightness, contrast, saturation, hue and grey as one affine colour map."""
        spans = (self.brightness, self.contrast, self.saturation)
        factors = [1 + span * (2 * u - 1) for span, u in zip(spans, draws[:3], strict=True)]
        bright, contrast, colour = factors
        matrix = colour * _IDENTITY + (1 - colour) * _GREY
        if self.hue:
            matrix = hue_rotation(2 * math.pi * self.hue * (2 * draws[3] - 1)) @ matrix
        if draws[4] < self.grayscale:
            matrix = _GREY
        offset = 0.0
        if self.contrast:
            # Sums of integers are exact, hence equal for any number of threads.
            means = image.sum((1, 2), dtype=torch.int64).numpy() / image[0].numel()
            offset = (1 - contrast) * bright * float(LUMA @ means)
        return bright * contrast * matrix, offset

    def _erase(self, image: Tensor, draws: list[float]) -> Tensor:
        """Fills a rectangle of 2-20% of the area."""
        size = image.shape[-1]
        area, aspect = 0.02 + 0.18 * draws[0], 3 ** (2 * draws[1] - 1)
        rows = max(1, round(size * math.sqrt(area / aspect)))
        columns = max(1, round(size * math.sqrt(area * aspect)))
        top, left = int(draws[2] * (size - rows + 1)), int(draws[3] * (size - columns + 1))
        image = image.clone()
        image[:, top : top + rows, left : left + columns] = self.fill
        return image


class EvalTransform(Transform):
    """The fixed view of a picture used in evaluation.

    Args:
        resize: `shortest` scales the shorter side and cuts the middle, `longest` scales the longer
            side and pads with `fill`, `squash` scales both sides.
        crop: With `shortest`, the side of the cut as a fraction of the scaled shorter side.
        fill: Grey level of the padding.

    Raises:
        ValueError: An unknown `resize`, or `crop` outside 0..1.
    """

    def __init__(self, resize: str = "shortest", crop: float = 1.0, fill: int = 255):
        if resize not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize={resize!r} must be 'shortest', 'longest' or 'squash'")
        if not 0 < crop <= 1:
            raise ValueError(f"crop={crop} must be above 0 and at most 1")
        self.resize, self.crop, self.fill = resize, crop, fill

    def __call__(self, image: Tensor, size: int, rng: np.random.Generator | None = None) -> Tensor:
        height, width = image.shape[-2:]
        if self.resize == "squash":
            return resize(image, size, size)
        if self.resize == "longest":
            rows, columns = (
                max(1, round(size * side / max(height, width))) for side in (height, width)
            )
            canvas = torch.full((3, size, size), self.fill, dtype=torch.uint8)
            top, left = (size - rows) // 2, (size - columns) // 2
            canvas[:, top : top + rows, left : left + columns] = resize(image, rows, columns)
            return canvas
        side = round(size / self.crop)
        # The longer side is rounded down, as torchvision does.
        rows, columns = (int(side * s / min(height, width)) for s in (height, width))
        top, left = round((rows - size) / 2), round((columns - size) / 2)
        return resize(image, rows, columns)[:, top : top + size, left : left + size]


def crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draws: np.ndarray,
) -> tuple[int, int, int, int]:
    """Returns top, left, height and width of a random crop (the Inception crop).

    Args:
        height: Of the picture, in pixels.
        width: Of the picture, in pixels.
        scale: Range of the crop's share of the area.
        ratio: Range of the crop's width by height, drawn evenly in its logarithm.
        draws: Uniform numbers [tries, 4]; the first try that fits is taken, else the middle.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area, shape, down, right in draws.tolist():
        pixels = height * width * (scale[0] + (scale[1] - scale[0]) * area)
        aspect = math.exp(low + (high - low) * shape)
        columns, rows = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < columns <= width and 0 < rows <= height:
            top, left = int(down * (height - rows + 1)), int(right * (width - columns + 1))
            return top, left, rows, columns
    columns = max(1, min(width, round(height * ratio[1])))
    rows = max(1, min(height, round(width / ratio[0])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Resizes uint8 [3, h, w] with antialiased bicubic filtering, without leaving uint8."""
    if image.shape[-2:] == (height, width):
        return image
    # The fast kernel is the one for channels-last memory, which is how pictures are decoded.
    batch = image[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(batch, size=(height, width), mode="bicubic", antialias=True)[0]


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
        degrees: Counter-clockwise.
        shift: To the right and down, as fractions of the side.
        fill: Grey level of the uncovered parts.
        mirrored: Whether left and right are swapped first.
    """
    size = pixels.shape[-1]
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    right, down = 2 * shift[0], 2 * shift[1]
    side = -1.0 if mirrored else 1.0
    # Each pixel (x, y, 1) of the result asks where in the original it came from.
    matrix = np.array(
        [
            [side * cosine, sine],
            [side * -sine, cosine],
            [side * (sine * down - cosine * right), -sine * right - cosine * down],
        ],
        dtype=np.float32,
    )
    grid = (_coordinates(size) @ torch.from_numpy(matrix)).view(1, size, size, 2)
    # Outside is zero, so the picture is sampled as its difference from the fill.
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
