"""The crop around other crops, on which A-CLIP scores the patches of these.

In: the crops of other views of an image. Out: a crop that contains them all, zoomed out at random,
without any other augmentation. Yang et al., "Attentive Mask CLIP" (2023), section 3.2.
"""

from collections.abc import Sequence

import numpy as np

from .transforms import Rng, TrainTransform


class EnclosingCrop(TrainTransform):
    """The smallest crop around those of other views, each edge then moved outwards.

    `draw` gives the columns of `TrainTransform`; all but the crop are those of a plain image.

    Args:
        around: batch entries of these views, such as [image, image.other]; they come before.
        zoom: how far an edge moves at most, as a fraction of the way to the image's edge; uniform.
        decode: see `TrainTransform`.

    Raises:
        ValueError: there are no views, or `zoom` is outside 0..1.
    """

    def __init__(self, around: tuple[str, ...], zoom: float = 1.0, decode: str = "exact"):
        super().__init__(decode=decode)  # type: ignore[arg-type] - checked there
        if not around:
            raise ValueError("EnclosingCrop needs views to lie around, such as around: [image]")
        if not 0 <= zoom <= 1:
            raise ValueError(f"zoom={zoom} must lie between 0 and 1")
        self.around = tuple(around)
        self.zoom = zoom

    def draw(
        self, height: int, width: int, rng: Rng, others: Sequence[np.ndarray] = ()
    ) -> np.ndarray:
        assert rng is not None and len(others) == len(self.around)
        tops, lefts, rows, columns = np.array([params[:4] for params in others]).T
        bottoms, rights = height - tops - rows, width - lefts - columns
        # Up, left, down, right: pixels between the smallest crop and the edge of the image.
        margins = np.array([min(side) for side in (tops, lefts, bottoms, rights)])
        moves = np.floor(rng.random(4) * (self.zoom * margins + 1))
        up, left, down, right = margins - moves
        params = np.zeros(len(self.columns))
        params[:4] = up, left, height - up - down, width - left - right
        neutral = {"brightness": 1, "contrast": 1, "saturation": 1}
        for name, value in (neutral | {"erase_area": 0.02, "erase_aspect": 1}).items():
            params[self.columns.index(name)] = value
        return params
