"""Regions of an image as texts: the phrase of one of them, and its box as four numbers.

In: a JSON value of a sample, `[{"box": [left, top, right, bottom], "text": "..."}, ...]`, edges as
fractions of the image, 0 to 1, from the left and from the top. Out: texts of one region, another
one each epoch. What a caption decoder reads and writes in LocCa (Wan et al. 2024, section 3), where
a detector has found the boxes.
"""

from typing import Any, TypeGuard

from ..errors import SampleError
from ..shards.fields import MAX_CAPTION, as_text, read_json, value_at
from ..shards.reader import RawSample
from .captions import CaptionPolicy

OF_A_RECORD = (
    'a region is {"box": [left, top, right, bottom], "text": "..."}, edges as fractions of the '
    "image between 0 and 1"
)


class RegionText(CaptionPolicy):
    """A text of one of a sample's regions, each as likely as any other.

    The texts of a sample that have `draws_as` in common are of the same region.

    Args:
        field: JSON value with the regions.
        draws_as: two names draw two regions.
        view: batch entry of the image in which the fractions have to hold.

    Raises:
        ValueError: the field is not one of a JSON member, or `draws_as` is empty.
    """

    def __init__(self, field: str = "json:regions", draws_as: str = "region", view: str = "image"):
        if not field.partition(":")[2] or not draws_as:
            raise ValueError(
                f"{type(self).__name__} has field={field!r}, draws_as={draws_as!r}: regions are a "
                "JSON value such as json:regions, and draws_as is any name"
            )
        self.fields = (field,)
        self.draws_as = draws_as
        self.view = view

    def region(self, sample: RawSample, draw: float) -> tuple[list[float], str]:
        """Returns box and phrase of a region.

        Args:
            sample: a raw sample.
            draw: uniform in [0, 1).

        Raises:
            SampleError: the sample has no regions (`no_caption`), or the one that is drawn is none
                (`bad_text`).
        """
        (field,) = self.fields
        extension, _, name = field.partition(":")
        regions = value_at(read_json(sample, extension), name)
        if regions is None or regions == []:
            raise SampleError("no_caption", f"'{sample['__key__']}' has no regions in {field}")
        region = None
        if isinstance(regions, list):
            region = regions[min(int(draw * len(regions)), len(regions) - 1)]
        box = region.get("box") if isinstance(region, dict) else None
        if isinstance(region, dict) and is_box(box):
            text = as_text(sample, extension, name, region.get("text"))
            if text and not text.isspace():
                return box, text[:MAX_CAPTION]
        found = str(region if isinstance(regions, list) else regions)[:200]
        raise SampleError(
            "bad_text", f"'{sample['__key__']}' has {found} in {field}; {OF_A_RECORD}"
        )


class RegionPhrase(RegionText):
    """What a region's record says of it."""

    def __call__(self, sample: RawSample, draw: float) -> str:
        return self.region(sample, draw)[1]


class RegionBox(RegionText):
    """Left, top, right and bottom of a region's box, as whole numbers of equally many digits.

    Tokenizers that drop spaces between digits, such as CLIP's, can then tell them apart.

    Args:
        steps: the number of the right and the lower edge of the image.
        choices: of `RegionText`.

    Raises:
        ValueError: steps is below 1.
    """

    def __init__(self, steps: int = 500, **choices: Any):
        super().__init__(**choices)
        if steps < 1:
            raise ValueError(f"RegionBox has steps={steps}: give 1 or more")
        self.steps = steps

    def __call__(self, sample: RawSample, draw: float) -> str:
        digits = len(str(self.steps))
        edges = self.region(sample, draw)[0]
        return " ".join(f"{int(edge * self.steps + 0.5):0{digits}d}" for edge in edges)


def is_box(value: object) -> TypeGuard[list[float]]:
    """Whether a JSON value is left, top, right and bottom of a box with an area in the image."""
    if not isinstance(value, list) or len(value) != 4:
        return False
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x in value):
        return False
    left, top, right, bottom = value
    return 0 <= left < right <= 1 and 0 <= top < bottom <= 1
