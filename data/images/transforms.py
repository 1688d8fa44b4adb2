"""Transforms of an image to the square of the image tower, uint8 in and uint8 out.

In: an `EncodedImage` and the generator of this sample, from which all randomness comes. Out: uint8
[3, size, size]. What is random is drawn first, as a row of numbers that can be recorded and
replayed; the pixels follow, and of a JPEG no more of them than the crop needs. Crop and resize are
one antialiased bicubic pass on uint8; the rest runs on the small result, and only if switched on.
Every random quantity has its own draw, so switching one operation on leaves the others as they
were. Normalisation is the model's.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .decode import EncodedImage, Pixels
from .pixels import GREY, LUMA, Interpolation, hue_rotation, map_colours, move, resize

CROP_TRIES = 10
# Brightness, contrast, saturation, hue and greyness that change nothing.
NEUTRAL_COLOURS = [1.0, 1.0, 1.0, 0.0, 0.0]

Box = tuple[int, int, int, int]
Range = tuple[float, float]
Rng = np.random.Generator | None


class Transform(ABC):
    """Maps an image of any size to a square one.

    Attributes:
        columns: names of what `draw` returns.
        around: views of the same image, drawn before, whose parameters `draw` takes.
    """

    columns: tuple[str, ...] = ()
    around: tuple[str, ...] = ()

    @property
    def keeps_fractions(self) -> bool:
        """Whether boxes in fractions of the image hold in the view: it is all of it, unturned."""
        return False

    def __call__(self, image: EncodedImage | Tensor, size: int, rng: Rng = None) -> Tensor:
        """Transforms one image: `draw`, then `apply`.

        Args:
            image: an image, or its pixels as uint8 [3, H, W].
            size: side of the result in pixels.
            rng: source of all randomness; None is allowed where nothing is random.

        Returns:
            uint8 [3, size, size].
        """
        if isinstance(image, Tensor):
            image = Pixels(image)
        return self.apply(image, size, self.draw(image.height, image.width, rng))

    @abstractmethod
    def draw(
        self, height: int, width: int, rng: Rng, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        """Draws what is random for an image of this size: float64 [len(columns)].

        Args:
            height: the image's, in pixels.
            width: the image's, in pixels.
            rng: source of all randomness.
            others: parameters of the views in `around`.
        """

    def factor(self, image: EncodedImage, size: int, params: np.ndarray) -> int:
        """Returns the divisor of the image's size at which `apply` will decode it."""
        return 1

    @abstractmethod
    def apply(self, image: EncodedImage, size: int, params: np.ndarray) -> Tensor:
        """Makes the view that `params` of `draw` describe: uint8 [3, size, size].

        Raises:
            SampleError: the pixels cannot be decoded.
        """


class TrainTransform(Transform):
    """Random crop and resize, then the operations that are switched on, in the order given here.

    `draw` gives the crop (`top`, `left`, `rows`, `columns`, in pixels of the whole image);
    whether it is mirrored (`flip`, 0 or 1); the rotation (`angle`, degrees); the shift (`right`,
    `down`, fractions of the side); the factors of `brightness`, `contrast` and `saturation`; the
    turn of the `hue` (radians); whether colours are dropped (`grayscale`, 0 or 1); whether a
    rectangle is erased (`erase`, 0 or 1), its share of the area (`erase_area`), its width by height
    (`erase_aspect`) and its place as fractions of the room there is (`erase_down`, `erase_right`).

    Args:
        scale: range of the crop's share of the area.
        ratio: range of the crop's width by height.
        flip: probability of mirroring left and right.
        rotate: largest rotation in degrees, either way.
        translate: largest shift as a fraction of the side, in each direction.
        brightness: the factor is drawn from 1 - value .. 1 + value; likewise the next two.
        contrast: blend with the mean grey.
        saturation: blend with the grey image.
        hue: largest turn of the colours about the grey axis, as a fraction of a full turn.
        grayscale: probability of dropping the colours.
        erase: probability of filling a rectangle of 2-20% of the area.
        fill: grey level of erased rectangles and of what rotation and shift uncover.
        decode: `exact` resizes the crop as it is. `dct` decodes a JPEG to 1/2, 1/4 or 1/8 where the
            crop stays large enough, and moves the crop's edges inwards to multiples of 2, 4 or 8
            pixels: faster, and on average one grey level away from `exact`.

    Raises:
        ValueError: a value is outside its range.
    """

    columns = (
        *("top", "left", "rows", "columns", "flip", "angle", "right", "down"),
        *("brightness", "contrast", "saturation", "hue", "grayscale"),
        *("erase", "erase_area", "erase_aspect", "erase_down", "erase_right"),
    )

    def __init__(
        self,
        scale: Range = (0.5, 1.0),
        ratio: Range = (0.75, 1.333),
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
        decode: Literal["exact", "dct"] = "exact",
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
        if decode not in ("exact", "dct"):
            raise ValueError(f"decode={decode!r} must be 'exact' or 'dct'")
        self.scale, self.ratio, self.flip = scale, ratio, flip
        self.rotate, self.translate = rotate, translate
        self.brightness, self.contrast, self.saturation = brightness, contrast, saturation
        self.hue, self.grayscale, self.erase, self.fill = hue, grayscale, erase, fill
        self.decode = decode

    def draw(
        self, height: int, width: int, rng: Rng, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        assert rng is not None, "training transforms need the sample's generator"
        crops = rng.random((CROP_TRIES, 4))
        u = rng.random(14).tolist()
        angle, right, down = (2 * x - 1 for x in u[1:4])
        spans = (self.brightness, self.contrast, self.saturation)
        return np.array(
            [
                *crop_box(height, width, self.scale, self.ratio, crops),
                u[0] < self.flip,
                angle * self.rotate,
                right * self.translate,
                down * self.translate,
                *(1 + span * (2 * x - 1) for span, x in zip(spans, u[4:7], strict=True)),
                2 * math.pi * self.hue * (2 * u[7] - 1),
                u[8] < self.grayscale,
                u[9] < self.erase,
                0.02 + 0.18 * u[10],
                3 ** (2 * u[11] - 1),
                u[12],
                u[13],
            ],
            dtype=np.float64,
        )

    def factor(self, image: EncodedImage, size: int, params: np.ndarray) -> int:
        """Returns the largest divisor that leaves the crop at least `size` pixels a side.

        Raises:
            ValueError: the crop, which may be a stored one, does not lie in the image.
        """
        top, left, rows, columns = params[:4].tolist()
        inside = top >= 0 and left >= 0 and rows >= 1 and columns >= 1
        if not inside or top + rows > image.height or left + columns > image.width:
            raise ValueError(
                f"a crop of {columns:g} x {rows:g} pixels at ({left:g}, {top:g}) does not lie in "
                f"an image of {image.width} x {image.height}; stored augmentations must be "
                "those of the same image at the same size"
            )
        return self.view(image, size, params)[0]

    def view(self, image: EncodedImage, size: int, params: np.ndarray) -> tuple[int, Box]:
        """Returns the divisor, and the crop (top, left, rows, columns) in the pixels it leaves."""
        top, left, rows, columns = (int(edge) for edge in params[:4].tolist())
        if self.decode == "dct":
            for factor in reversed(image.factors[1:]):
                # Inwards: no pixel then averages over an edge of the crop or of the image.
                first_row, first_column = -(-top // factor), -(-left // factor)
                num_rows = (top + rows) // factor - first_row
                num_columns = (left + columns) // factor - first_column
                if min(num_rows, num_columns) >= size:
                    return factor, (first_row, first_column, num_rows, num_columns)
        return 1, (top, left, rows, columns)

    def apply(self, image: EncodedImage, size: int, params: np.ndarray) -> Tensor:
        factor, (top, left, rows, columns) = self.view(image, size, params)
        crop = image.pixels(factor)[:, top : top + rows, left : left + columns]
        result = resize(crop, size, size)
        mirrored, angle, right, down, *values = params[4:].tolist()
        moves, recolours = any((angle, right, down)), values[:5] != NEUTRAL_COLOURS
        if moves or recolours:
            # One pass in floats for all of them: rounded and clamped once, at the end.
            colours = self._colour_map(result, values[:5]) if recolours else None
            pixels = result.float()
            if moves:
                pixels = move(pixels, angle, (right, down), self.fill, bool(mirrored))
            elif mirrored:
                pixels = pixels.flip(-1)
            if colours:
                pixels = map_colours(pixels, *colours)
            result = pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)
        elif mirrored:
            result = result.flip(-1)
        if values[5]:
            result = self._erase(result, *values[6:])
        return result

    def _colour_map(self, image: Tensor, values: list[float]) -> tuple[np.ndarray, float]:
        """Returns brightness, contrast, saturation, hue and grey as one affine colour map."""
        bright, contrast, colour, turn, grey = values
        matrix = colour * np.eye(3) + (1 - colour) * GREY
        if turn:
            matrix = hue_rotation(turn) @ matrix
        if grey:
            matrix = GREY
        offset = 0.0
        if contrast != 1:
            # Sums of integers are exact, hence equal for any number of threads.
            means = image.sum((1, 2), dtype=torch.int64).numpy() / image[0].numel()
            offset = (1 - contrast) * bright * float(LUMA @ means)
        return bright * contrast * matrix, offset

    def _erase(
        self, image: Tensor, area: float, aspect: float, down: float, right: float
    ) -> Tensor:
        size = image.shape[-1]
        rows = max(1, round(size * math.sqrt(area / aspect)))
        columns = max(1, round(size * math.sqrt(area * aspect)))
        top, left = int(down * (size - rows + 1)), int(right * (size - columns + 1))
        image = image.clone()
        image[:, top : top + rows, left : left + columns] = self.fill
        return image


class EvalTransform(Transform):
    """The fixed view of an image in evaluation.

    Args:
        resize: `shortest` scales the shorter side and cuts the middle, `longest` scales the longer
            side and pads with `fill`, `squash` scales both sides.
        crop: but with `longest`, the side of the cut as a fraction of the scaled (shorter) side.
        fill: grey level of the padding.
        interpolation: `bicubic` or `bilinear`, antialiased.
        centre: where a cut lies half a pixel beside the middle: at the `even` place, as in
            torchvision, or `up` and left, as in transformers.

    Raises:
        ValueError: an unknown `resize`, `interpolation` or `centre`, or `crop` outside 0..1.
    """

    def __init__(
        self,
        resize: str = "shortest",
        crop: float = 1.0,
        fill: int = 255,
        interpolation: Interpolation = "bicubic",
        centre: str = "even",
    ):
        if resize not in ("shortest", "longest", "squash"):
            raise ValueError(f"resize={resize!r} must be 'shortest', 'longest' or 'squash'")
        if not 0 < crop <= 1:
            raise ValueError(f"crop={crop} must be above 0 and at most 1")
        if interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"interpolation={interpolation!r} must be 'bicubic' or 'bilinear'")
        self.resize, self.crop, self.fill = resize, crop, fill
        if centre not in ("even", "up"):
            raise ValueError(f"centre={centre!r} must be 'even' or 'up'")
        self.interpolation: Interpolation = interpolation
        self.centre = centre

    @property
    def keeps_fractions(self) -> bool:
        return self.resize == "squash" and self.crop == 1

    def draw(
        self, height: int, width: int, rng: Rng = None, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        return np.empty(0)

    def apply(self, image: EncodedImage, size: int, params: np.ndarray) -> Tensor:
        pixels, height, width = image.pixels(), image.height, image.width
        if self.resize == "longest":
            rows, columns = (
                max(1, round(size * side / max(height, width))) for side in (height, width)
            )
            canvas = torch.full((3, size, size), self.fill, dtype=torch.uint8)
            top, left = (size - rows) // 2, (size - columns) // 2
            canvas[:, top : top + rows, left : left + columns] = resize(
                pixels, rows, columns, self.interpolation
            )
            return canvas
        side = round(size / self.crop)
        if self.resize == "squash":
            rows = columns = side
        else:  # The longer side is rounded down, as torchvision does.
            rows, columns = (int(side * s / min(height, width)) for s in (height, width))
        place = round if self.centre == "even" else int
        top, left = place((rows - size) / 2), place((columns - size) / 2)
        scaled = resize(pixels, rows, columns, self.interpolation)
        return scaled[:, top : top + size, left : left + size]


def crop_box(height: int, width: int, scale: Range, ratio: Range, draws: np.ndarray) -> Box:
    """Returns top, left, height and width of a random crop (the Inception crop).

    Args:
        height: the image's, in pixels.
        width: the image's, in pixels.
        scale: range of the crop's share of the area.
        ratio: range of the crop's width by height, drawn evenly in its logarithm.
        draws: uniform numbers [tries, 4]; the first try that fits is taken, else the middle.
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
