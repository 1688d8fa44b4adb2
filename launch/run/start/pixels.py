"""How a model of another library wants its images, as the transform that makes them.

In: `Pixels`, plain values. Out: an `EvalTransform`; mean and standard deviation are the tower's.
"""

from ....data.images.transforms import EvalTransform
from ....models.interop.base import Pixels


def eval_transform_of(pixels: Pixels) -> EvalTransform:
    """Returns the transform of evaluation; its images get the side `pixels.image_size`."""
    p = pixels
    return EvalTransform(p.resize, p.crop, p.fill, p.interpolation, p.centre)
