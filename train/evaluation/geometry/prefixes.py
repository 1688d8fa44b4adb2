"""Nested dimensions: another task, measured with the first dimensions of each embedding.

In: a task. Out: its measures by number of dimensions. Kusupati et al., "Matryoshka Representation
Learning" (2022), section 4: embeddings are cut, and brought to length one again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ....data.image_sets import ImageSet
from ....losses.components.similarity import Metric
from ..details import Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..task import Task


@dataclass(frozen=True)
class PrefixMetric(Metric):
    """The cosine of the first `width` dimensions."""

    width: int = 0

    def images(self, image: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self._cut(image)

    def texts(self, text: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self._cut(text)

    def mean_texts(self, mean: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        return self._cut(mean)

    def _cut(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        if self.width > rows.shape[1]:
            raise ValueError(
                f"widths: {self.width} dimensions of embeddings that have {rows.shape[1]}; leave "
                "it out"
            )
        return F.normalize(rows[:, : self.width], dim=-1)


class Prefixes(Task):
    """Measures a task with the first dimensions of embeddings: `NAME_64`, `NAME_64_GROUP`.

    Every image is encoded once. Nothing is measured of an objective whose similarity is not the
    cosine: a prefix of its embeddings is not defined, and objectives share suites.

    Args:
        task: what is measured; ranks by embeddings of images and texts.
        widths: numbers of dimensions.
    """

    def __init__(self, task: Task, widths: Sequence[int]):
        if not isinstance(task, Task):
            raise ValueError(f"task: {task!r} is no task; give a class_path with its init_args")
        super().__init__(task.data)
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"widths: {widths!r} is not a list of positive whole numbers")
        self.task = task
        self.widths = tuple(widths)

    def prepare(self) -> np.ndarray:
        return self.task.prepare()

    def image_sets(self) -> dict[ImageSet, np.ndarray]:
        return self.task.image_sets()

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        return self.task.measure(encoder, chosen)

    def run(self, encoder: Encoder) -> Iterator[tuple[str, str, float | Outcomes | Detail]]:
        if encoder.metric.form:
            return
        for width in self.widths:
            cut = replace(encoder, metric=PrefixMetric(width=width))
            cut._encoded = encoder._encoded
            for group, name, value in self.task.run(cut):
                yield f"{width}_{group}" if group else f"{width}", name, value
