"""Images with several labels, by prompts: how well each class's score orders all images.

In: an image set whose items hold a vector of zeros and ones, one number a class. Out: the mean
average precision of CLIP_benchmark.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision
from .classification import ZeroShot


class MultiLabel(ZeroShot):
    """`mean_average_precision`: the mean over classes of the average precision over images.

    A class without images counts as 0, as in CLIP_benchmark. Images of one score are taken in
    together, so that their order counts for nothing.

    Args:
        data: the images.
        label: the field with a list of numbers, one a class: not zero where the image has it.
        classes: see `ZeroShot`; in the order of the numbers.
        templates: see `ZeroShot`.
        where: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        label: str = "npy",
        classes: list[str] | dict[str, str] | str | None = None,
        templates: Any = "a photo of a {c}.",
        where: dict[str, Any] | None = None,
    ):
        super().__init__(data, label, classes, templates, where)

    def prepare(self) -> np.ndarray:
        self._chosen = np.asarray(self.data.select(self.where), dtype=np.int64)
        self._names, _ = self._class_index([])
        self._prompts = self.class_prompts(self.templates)
        self._has = torch.tensor([self._labels_of(i) for i in self._chosen.tolist()])
        return self._chosen

    def _labels_of(self, index: int) -> list[bool]:
        item = self.data.items[index]
        numbers = item.get(self.label)
        if not isinstance(numbers, list) or len(numbers) != len(self._names):
            raise ValueError(
                f"sample {item.get('key')} in {item.path} has {self.label}: {numbers}, and a list "
                f"of {len(self._names)} numbers is needed, one a class"
            )
        return [bool(number) for number in numbers]

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        images, classes = encoder.images(self.data, chosen), self.classifier(encoder)
        with full_precision(images.device):
            scores = (images @ classes.T).cpu()
        has = self._has[np.searchsorted(self._chosen, chosen)]
        values = [average_precision(s, h) for s, h in zip(scores.T, has.T, strict=True)]
        return {"mean_average_precision": sum(values) / len(values)}


def average_precision(scores: Tensor, has: Tensor) -> float:
    """Returns the mean, over positive images, of the precision among those that score as high.

    Args:
        scores: [n]; NaN is nowhere.
        has: which images are positive, bool [n].
    """
    positive = scores[has]
    if not len(positive):
        return 0.0
    among = [each[~each.isnan()].sort().values for each in (positive, scores)]
    kept = among[0]
    above = [(len(each) - torch.searchsorted(each, kept)).double() for each in among]
    return float((above[0] / above[1]).sum()) / len(positive)
