"""An image's bytes to pixels: the size first, the pixels when it is known how many are needed.

In: the bytes of one image file. Out: an `EncodedImage`, of which only the header has been read,
then its pixels, uint8 RGB [3, h, w]. A JPEG can also be decoded at 1/2, 1/4 and 1/8 of its size,
straight from its frequencies, which saves most of the work after decoding. Damaged bytes raise a
`SampleError` with the cause `bad_image`.
"""

import io
import re
from abc import ABC, abstractmethod

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import SampleError
from .header_checks import vet_image

try:
    import simplejpeg
except ImportError:  # Pillow decodes to the same pixels, in one and a half times the time.
    simplejpeg = None

# Above this, where Pillow begins to warn, an image counts as an attack or a mistake.
MAX_PIXELS = 89_000_000
# Scaled until the shorter side fits, a line of one pixel would fill the memory.
MAX_ASPECT = 200
FACTORS = (1, 2, 4, 8)
# Below this side, two of libjpeg's scales can give the same number of pixels.
MIN_SCALED_SIDE = 64
ORDINARY = ("YCbCr", "RGB", "Gray")
# libjpeg fills what is missing with grey and only warns; Pillow does not pass the warning on. Up to
# four stray bytes between segments, and odd markers, are in files that all viewers show undamaged;
# more are what is left over where a wrong bit has shifted the rest of the image.
MISSING = re.compile("Premature end|Corrupt JPEG data: (?![0-4] extraneous bytes)")


class EncodedImage(ABC):
    """One image file, decoded on demand.

    Attributes:
        height: in pixels.
        width: in pixels.
        factors: the divisors of its size at which it can be decoded.
    """

    factors: tuple[int, ...] = (1,)

    def __init__(self, height: int, width: int, data: bytes = b""):
        self.height = height
        self.width = width
        self._data: bytes | None = data
        self._decoded: dict[int, Tensor] = {}

    @staticmethod
    def open(data: bytes) -> "EncodedImage":
        """Reads the header of an image file.

        Raises:
            SampleError: it is not an image, has more than `MAX_PIXELS`, or is a mere line.
        """
        form = vet_image(data)
        header = _jpeg_header(data) if form == "JPEG" else None
        try:
            image = Jpeg(data, *header) if header else PillowImage(data, form)
        # Decoders raise nearly anything on damaged bytes (SyntaxError, struct.error, IndexError).
        except Exception as error:
            raise _bad_image(error) from error
        # A few bytes can declare any size.
        if image.height * image.width > MAX_PIXELS:
            size = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
            raise SampleError("bad_image", size)
        if max(image.height, image.width) > MAX_ASPECT * min(image.height, image.width):
            raise SampleError("bad_image", f"{image.width} x {image.height} pixels: a line")
        return image

    def pixels(self, factor: int = 1) -> Tensor:
        """Returns uint8 RGB [3, ceil(height / factor), ceil(width / factor)], channels last.

        Transparent parts show white; palettes, CMYK, grey and 16-bit images are converted; of an
        animation the first frame is taken; an EXIF orientation is ignored, as other CLIP trainers
        do. The pixels are cached and must not be written to.

        Args:
            factor: one of `factors`.

        Raises:
            SampleError: the data are damaged or incomplete.
        """
        assert factor in self.factors, (factor, self.factors)
        assert self._data is not None, "this image has been forgotten"
        if factor not in self._decoded:
            try:
                pixels = self._decode(factor)
            except Exception as error:
                raise _bad_image(error) from error
            self._decoded[factor] = torch.from_numpy(pixels).permute(2, 0, 1)
        return self._decoded[factor]

    def thumbnail(self, side: int) -> np.ndarray:
        """Returns the means of equal areas of the whole image, grey, uint8 [side, side].

        A JPEG is decoded at the smallest of its scales that has twice the side. Nothing is cached.

        Raises:
            SampleError: the data are damaged or incomplete.
        """
        assert self._data is not None, "this image has been forgotten"
        enough = [f for f in self.factors if f * 2 * side <= min(self.height, self.width)]
        try:
            grey = self._grey(max(enough, default=1))
        except Exception as error:
            raise _bad_image(error) from error
        return np.asarray(grey.resize((side, side), Image.Resampling.BOX))

    @property
    def num_bytes(self) -> int:
        """Size of the cached pixels."""
        return sum(pixels.numel() for pixels in self._decoded.values())

    @property
    def file_bytes(self) -> int:
        """Size of the file, held until `forget`."""
        return len(self._data or b"")

    def forget(self) -> None:
        """Frees the pixels and the file; they cannot be read again."""
        self._decoded.clear()
        self._data = None

    @abstractmethod
    def _decode(self, factor: int) -> np.ndarray:
        """Returns uint8 RGB [h, w, 3]; may raise anything."""

    def _grey(self, factor: int) -> Image.Image:
        """Returns the image in grey; may raise anything."""
        return Image.fromarray(self._decode(factor)).convert("L")


class Pixels(EncodedImage):
    """Decoded pixels as an image.

    Args:
        image: uint8 [3, h, w].
    """

    def __init__(self, image: Tensor):
        _, height, width = image.shape
        super().__init__(height, width)
        self._decoded[1] = image

    def _decode(self, factor: int) -> np.ndarray:
        raise AssertionError("there is no file to decode")


class Jpeg(EncodedImage):
    """A JPEG, decoded by libjpeg-turbo without Pillow if it is an ordinary one."""

    def __init__(self, data: bytes, height: int, width: int, colours: str):
        super().__init__(height, width, data)
        self.colours = "RGB" if colours in ORDINARY else "CMYK"
        if colours in ORDINARY and min(height, width) >= MIN_SCALED_SIDE:
            self.factors = FACTORS

    def _decode(self, factor: int) -> np.ndarray:
        assert self._data is not None
        pixels = self._libjpeg_pixels(factor, self.colours)
        if pixels is None:
            return _reduced(_pillow_pixels(self._data), factor)
        if self.colours == "CMYK":
            # libjpeg found it whole; the conversion is Pillow's.
            return _pillow_pixels(self._data)
        return pixels

    def _grey(self, factor: int) -> Image.Image:
        # The luma as it is stored: neither the chroma nor a conversion of colours is computed.
        pixels = None if self.colours == "CMYK" else self._libjpeg_pixels(factor, "GRAY")
        return super()._grey(factor) if pixels is None else Image.fromarray(pixels[..., 0])

    def _libjpeg_pixels(self, factor: int, colours: str) -> np.ndarray | None:
        """Returns uint8 [h, w, c] as libjpeg decodes it; None if Pillow has to.

        Raises:
            ValueError: data are missing.
        """
        assert simplejpeg is not None and self._data is not None
        # Lower bounds of the size and of the divisor leave no other scale than this one.
        rows, columns = -(-self.height // factor), -(-self.width // factor)
        try:
            pixels = simplejpeg.decode_jpeg(
                self._data, colours, min_height=rows, min_width=columns, min_factor=factor
            )
        except ValueError as error:
            if MISSING.match(str(error)):
                raise
            return None
        assert colours == "CMYK" or pixels.shape[:2] == (rows, columns), (pixels.shape, rows)
        return pixels


class PillowImage(EncodedImage):
    """An image that Pillow decodes."""

    def __init__(self, data: bytes, form: str):
        image = Image.open(io.BytesIO(data), formats=(form,))
        super().__init__(image.height, image.width, data)
        self._form = form
        # Pillow allocates pixels when they are read; an open WebP has memory for them already.
        self._image = None if form == "WEBP" else image

    def _decode(self, factor: int) -> np.ndarray:
        pixels = np.array(on_white(self._opened()))
        # Pillow would hold a copy of the pixels beside these.
        self._image = None
        return pixels

    def _grey(self, factor: int) -> Image.Image:
        grey = on_white(self._opened()).convert("L")
        self._image = None
        return grey

    def _opened(self) -> Image.Image:
        assert self._data is not None
        return self._image or Image.open(io.BytesIO(self._data), formats=(self._form,))

    def forget(self) -> None:
        super().forget()
        self._image = None


def decode_image(data: bytes) -> Tensor:
    """Decodes a whole image to uint8 RGB [3, H, W] (channels last in memory).

    Raises:
        SampleError: it cannot be decoded (`bad_image`).
    """
    return EncodedImage.open(data).pixels()


def _jpeg_header(data: bytes) -> tuple[int, int, str] | None:
    """Returns height, width and colours of a JPEG; None if Pillow has to read it."""
    if simplejpeg is None:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):
        # Damaged, or of an unknown kind.
        return None
    return int(height), int(width), str(colours)


def _pillow_pixels(data: bytes) -> np.ndarray:
    return np.array(on_white(Image.open(io.BytesIO(data), formats=("JPEG",))))


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Averages squares of `factor` pixels."""
    return pixels if factor == 1 else np.array(Image.fromarray(pixels).reduce(factor))


def _bad_image(error: Exception) -> SampleError:
    return SampleError("bad_image", f"{type(error).__name__}: {error}")


def on_white(image: Image.Image) -> Image.Image:
    """Converts any mode to RGB; transparent parts show white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow clips 16 bits to 255 where it should scale.
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        # In a TIFF, 0 may mean white; Pillow inverts it with 8 bits only.
        white_is_zero = image.format == "TIFF" and image.tag_v2.get(262) == 0  # pyright: ignore
        return Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if image.mode in ("I", "F"):
        # Measurements rather than images: the range is unknown.
        raise ValueError(f"pixels of mode {image.mode} have no known range")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        # Each copy of the largest image takes 350 MB.
        layer = image if image.mode == "RGBA" else image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(canvas, layer).convert("RGB")
    return image.convert("RGB")
