"""One image of any kind to its pixels.

In: a path, the bytes of a file, a Pillow image, an array or a tensor. Out: uint8 RGB [3, h, w].
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.errors import SampleError
from ...data.images.decode import decode_image, on_white

KINDS = (
    "an image is a path, the bytes of a file, a Pillow image, a uint8 array [h, w], [h, w, 3] or "
    "[h, w, 4], or a uint8 tensor [3, h, w]"
)


def is_one(images: Any) -> bool:
    """Whether something is one image and not several.

    Raises:
        ValueError: it is neither, such as an array of floats.
    """
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return True
    if not isinstance(images, np.ndarray | Tensor):
        return False
    if images.dtype not in (np.uint8, torch.uint8):
        raise ValueError(
            f"the pixels are {images.dtype}, and have to be uint8 from 0 to 255: give images as "
            "they are decoded, the model scales and normalises them itself"
        )
    if images.ndim not in (2, 3, 4) or (isinstance(images, Tensor) and images.ndim == 2):
        raise ValueError(f"the shape {list(images.shape)} is no image's: {KINDS}")
    return images.ndim < 4


def pixels_of(image: Any) -> Tensor:
    """Returns an image's pixels, as evaluation decodes them.

    Transparent parts show white; an EXIF orientation is ignored, as in training.

    Raises:
        ValueError: it cannot be read, or is no image.
    """
    try:
        if isinstance(image, str | os.PathLike):
            return decode_image(Path(image).read_bytes())
        if isinstance(image, bytes):
            return decode_image(image)
        if isinstance(image, Tensor) and is_one(image) and image.shape[0] == 3:
            return image.cpu()
        if isinstance(image, np.ndarray) and is_one(image) and _has_channels(image):
            image = Image.fromarray(image)
        if isinstance(image, Image.Image):
            return torch.from_numpy(np.array(on_white(image))).permute(2, 0, 1)
    except (SampleError, OSError) as error:
        shown = "the bytes of an image" if isinstance(image, bytes) else f"the image {image}"
        raise ValueError(f"{shown} cannot be read ({error})") from error
    shape = f" of the shape {list(image.shape)}" if hasattr(image, "shape") else ""
    raise ValueError(f"{type(image).__name__}{shape} is no image: {KINDS}")


def _has_channels(image: np.ndarray) -> bool:
    return image.ndim == 2 or image.shape[2] in (3, 4)
