"""Compares an exported model with the run that it came from.

In: a run, and its export as the target's own library loads it. Out: the largest differences, on
images and texts that are always the same.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...data.images.transforms import EvalTransform
from .source import Source
from .target import Reloaded

# Of embeddings of length one.
LIMIT = 1e-4
# Resizing rounds to whole grey levels twice, and libraries do it at different places: a few pixels
# are two or three levels apart.
GREY_LIMIT, GREY_SHARE = 1.0, 0.99
NUM_IMAGES = 8
TEXTS = (
    "a red house",
    "A PHOTO of two dogs, running!",
    "woman firefighter: medium-dark skin tone",
    "it's 2026, isn't it?",
    "na\u00efve caf\u00e9",
    "flag: C\u00f4te d'Ivoire",
    "5 < 7",
    "a very long caption " * 40,
)


@dataclass(frozen=True)
class Parity:
    """Largest absolute differences.

    Attributes:
        image: of image embeddings, of images that need no resizing.
        text: of text embeddings.
        grey: of prepared images of other sizes, in grey levels of 0 to 255.
        most_grey: the same without the largest hundredth.
    """

    image: float
    text: float
    grey: float
    most_grey: float

    def __str__(self) -> str:
        return (
            f"largest difference of image embeddings {self.image:.1e}, of text embeddings "
            f"{self.text:.1e}, of resized images {self.grey:.1f} grey levels"
        )


def measure(source: Source, exported: Reloaded) -> Parity:
    """Measures the differences between a run and its export."""
    size = source.model.image_size
    squares = [texture(size, size, seed) for seed in range(NUM_IMAGES)]
    others = [texture(*shape, seed) for seed, shape in enumerate(shapes(source))]
    with torch.inference_mode():
        image = source.model.encode_image(pixels(source, squares))
        text = source.model.encode_text(*source.run.tokenizer(TEXTS, source.model.context_length))
        # A short text alone is padded otherwise than beside a long one.
        alone, together = exported.encode_texts(TEXTS[:1]), exported.encode_texts(TEXTS[1:])
        grey = (pixels(source, others) - exported.grey_levels(others)).abs()
        return Parity(
            largest(image, exported.encode_images(squares)),
            largest(text, torch.cat([alone, together])),
            float(grey.max()),
            float(grey.flatten().quantile(GREY_SHARE)),
        )


def check(parity: Parity, target: str) -> None:
    """Refuses an export that is another model than its run.

    Raises:
        ValueError: a difference is above its limit.
    """
    if not parity.most_grey <= GREY_LIMIT + 0.01:
        raise ValueError(
            f"{target} prepares images in another way than the run: {parity}, and at most "
            f"{GREY_LIMIT:.0f} grey level is allowed for {GREY_SHARE:.0%} of the pixels; nothing "
            "was written"
        )
    if not max(parity.image, parity.text) <= LIMIT:  # NaN is refused, too
        raise ValueError(
            f"{target} computes other embeddings than the run: {parity}, and at most {LIMIT:.0e} "
            "is allowed; nothing was written"
        )


def shapes(source: Source) -> list[tuple[int, int]]:
    """Returns heights and widths of images whose middle is cut at whole pixels.

    Where half of what is cut off is no whole number, libraries round differently, and the same
    square is one pixel further on.
    """
    size, transform = source.model.image_size, source.run.eval_transform
    side = round(size / transform.crop) if isinstance(transform, EvalTransform) else size
    sizes = []
    for short, long in ((size * 3 // 2, size * 2), (size + 7, size * 2), (size + 1, size * 3)):
        while (side * long // short - size) % 2:
            long += 1
        sizes.append((short, long))
    return [sizes[0], sizes[1][::-1], sizes[2]]


def pixels(source: Source, images: list[Image.Image]) -> Tensor:
    """Prepares images as the run does: uint8 [n, 3, size, size]."""
    size, prepare = source.model.image_size, source.run.eval_transform
    tensors = (torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images)
    return torch.stack([prepare(tensor, size, None) for tensor in tensors])


def texture(height: int, width: int, seed: int) -> Image.Image:
    """Draws an image of blurred colours with some grain, the same everywhere."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = rng.integers(-20, 21, smooth.shape, dtype=np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Returns the largest absolute difference; infinite if the shapes differ."""
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max())
