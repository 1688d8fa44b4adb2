"""DataComp's tasks: the measure of each that its score averages.

Gadre et al., "DataComp: In search of the next generation of multimodal datasets" (2023), section
3.5; the measures are those of its `tasklist.yml`. Where one is taken by groups, KEY.npy holds the
numbers of an image's groups: FMoW's region and year, GeoDE's region, Dollar Street's quarter of
incomes.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...data.benchmark_sets import BenchmarkSet
from .clip_benchmark import ClipBenchmark
from .encode import Encoder
from .outcomes import Outcomes, part_of
from .ranks import full_precision

Main = Literal[
    "top1",
    "mean_per_class_recall",
    "macro_f1",
    "worst_group_top1",
    "worst_group_top5",
    "mean_recall@1",
]


class DataComp(ClipBenchmark):
    """The measures of `ClipBenchmark`, what DataComp adds, and `main`, which its score averages.

    Args:
        data: one split of the data set.
        main: the measure: `macro_f1` is the mean of the F1 of all classes that have images (WILDS),
            `worst_group_top1` the accuracy of the worst group, `mean_recall@1` the mean of both
            directions of retrieval.
        group: of worst groups: the position in KEY.npy of the number that names an image's group.
    """

    def __init__(self, data: BenchmarkSet, main: Main = "top1", group: int = 0):
        super().__init__(data)
        self.main, self.group = main, group

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        if self.main.startswith("worst_group"):
            self._groups = {i: self._group_of(i) for i in chosen.tolist()}
        if self._task is self.multi_label:
            raise ValueError(
                f"{self.data} has several labels an image, and no task of DataComp has"
            )
        is_retrieval = self._task is self.retrieval
        if is_retrieval != (self.main == "mean_recall@1"):
            kind = "retrieval" if is_retrieval else "classification"
            raise ValueError(f"{self.data} is for {kind}, which has no measure {self.main}")
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        values = dict(super().measure(encoder, chosen))
        if self.main == "mean_recall@1":
            ways = (values["image_to_text_recall@1"], values["text_to_image_recall@1"])
            values[self.main] = sum(map(float, ways)) / 2
        elif self.main == "macro_f1":
            targets = torch.tensor([self.zero_shot.target(i) for i in chosen.tolist()])
            values[self.main] = macro_f1(self._answers(encoder, chosen), targets)
        elif self.main.startswith("worst_group"):
            measure = values[self.main.removeprefix("worst_group_")]
            assert isinstance(measure, Outcomes)
            groups = np.array([self._groups[i] for i in chosen.tolist()])
            parts = [part_of(measure, groups == group) for group in np.unique(groups)]
            values[self.main] = min(parts, key=float)
        return values | {"main": values[self.main]}

    def _group_of(self, index: int) -> int:
        item = self.data.items[index]
        numbers = item.get("npy")
        if not isinstance(numbers, list) or self.group >= len(numbers):
            raise ValueError(
                f"sample {item.get('key')} in {item.path} has no number {self.group} in its .npy "
                f"(it has {numbers}), which {self.main} takes for its group"
            )
        return int(numbers[self.group])

    def _answers(self, encoder: Encoder, chosen: np.ndarray) -> Tensor:
        """Returns the class of the highest score of each image, int64 [n]."""
        images, classes = encoder.images(self.data, chosen), self.zero_shot.classifier(encoder)
        with full_precision(images.device):
            return torch.cat([(part @ classes.T).argmax(1) for part in images.split(1024)]).cpu()


def macro_f1(answers: Tensor, targets: Tensor) -> float:
    """Returns the mean F1 of the classes that have images, each 2 TP / (2 TP + FP + FN)."""
    classes = targets.unique()[:, None]
    hits = ((answers == classes) & (targets == classes)).sum(1).double()
    named = (answers == classes).sum(1) + (targets == classes).sum(1)
    return float((2 * hits / named).mean())
