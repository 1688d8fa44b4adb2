"""Data sets in the layout of CLIP_benchmark: files in the folder name the task.

In: such a folder (`data.benchmark_sets`). Out: the measures of `ZeroShot`, `MultiLabel` or
`Retrieval`.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ...data.benchmark_sets import CLASSES, TEMPLATES, TYPE, BenchmarkSet
from .details import Detail
from .encode import Encoder
from .outcomes import Outcomes
from .retrieval import Retrieval
from .task import Task
from .zero_shot.classification import ZeroShot
from .zero_shot.multi_label import MultiLabel


class ClipBenchmark(Task):
    """Zero-shot classification, with one label or several, or retrieval, by the data set's type.

    Args:
        data: one split of the data set.
        k: of retrieval: numbers of nearest candidates that count.
        templates: prompts with `{c}` in the place of the data set's own.
    """

    def __init__(
        self,
        data: BenchmarkSet,
        k: list[int] | tuple[int, ...] = (1, 5, 10),
        templates: list[str] | None = None,
    ):
        super().__init__(data)
        self.benchmark = data
        self.retrieval = Retrieval(data, captions="txt", separator="\n", k=k)
        prompts = templates or str(Path(data.folder, TEMPLATES))
        self.zero_shot = ZeroShot(data, label="cls", templates=prompts)
        self.multi_label = MultiLabel(data, templates=prompts)

    def prepare(self) -> np.ndarray:
        file = self.benchmark.file(TYPE)
        kind = file.read_text().strip().lower() if file.is_file() else "classification"
        tasks = {
            "retrieval": self.retrieval,
            "classification": self.zero_shot,
            "multilabel": self.multi_label,
        }
        if kind not in tasks:
            raise ValueError(f"{file} says '{kind}'; what can be measured is {', '.join(tasks)}")
        if kind != "retrieval":
            # A label is a position, even where names are digits or occur twice.
            names = self.benchmark.lines(CLASSES)
            classes = {str(i): name for i, name in enumerate(names)}
            self.zero_shot.classes = self.multi_label.classes = classes
        self._task: Task = tasks[kind]
        self._chosen = self._task.prepare()
        return self._chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        found = self._task.measure(encoder, chosen)
        return {name: each for name, each in found.items() if not isinstance(each, Detail)}
