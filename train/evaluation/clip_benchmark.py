"""Data sets in the layout of CLIP_benchmark: files in the folder name the task.

    FOLDER/test/0.tar, 1.tar, ...                   KEY.webp (or .jpg, .png) with KEY.cls or KEY.txt
    FOLDER/classnames.txt                           a class a line, as .cls counts them
    FOLDER/zeroshot_classification_templates.txt    a prompt a line, {c} is the class
    FOLDER/dataset_type.txt                         "retrieval": KEY.txt has a caption a line

In: such a folder. Out: the measures of `ZeroShot` or `Retrieval`.
"""

from collections.abc import Mapping

import numpy as np

from ...data.image_sets import ImageSet
from .encode import Encoder
from .outcomes import Outcomes
from .retrieval import Retrieval
from .task import Task
from .zeroshot import ZeroShot

TYPE, CLASSES = "dataset_type.txt", "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


class ClipBenchmark(Task):
    """Zero-shot classification or retrieval, by the data set's type.

    Args:
        data: the shards of one split; the files above are beside their folder.
        k: of retrieval: numbers of nearest candidates that count.
    """

    def __init__(self, data: ImageSet, k: list[int] | tuple[int, ...] = (1, 5, 10)):
        super().__init__(data)
        self.retrieval = Retrieval(data, captions="txt", separator="\n", k=k)
        self.zero_shot = ZeroShot(data, label="cls", classes=CLASSES, templates=TEMPLATES)

    def prepare(self) -> np.ndarray:
        file = self.data.root / TYPE
        kind = file.read_text().strip() if file.is_file() else "classification"
        if kind not in ("retrieval", "classification"):
            raise ValueError(
                f"{file} says '{kind}'; zero-shot classification and retrieval can be measured"
            )
        if kind == "classification" and not (self.data.root / CLASSES).is_file():
            raise ValueError(
                f"{self.data.root.resolve()} has no {CLASSES}: data_root has to be the folder of "
                "one data set of CLIP_benchmark, which holds test/*.tar and that file"
            )
        self._task: Task = self.retrieval if kind == "retrieval" else self.zero_shot
        self._chosen = self._task.prepare()
        return self._chosen

    def image_sets(self) -> dict[ImageSet, np.ndarray]:
        return self._task.image_sets()

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        return self._task.measure(encoder, chosen)
