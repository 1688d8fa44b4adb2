"""Data sets in the layout of CLIP_benchmark, as they are: the folder says what is to be measured.

    FOLDER/test/0.tar, 1.tar, ...                   KEY.webp (or .jpg, .png) with KEY.cls or KEY.txt
    FOLDER/classnames.txt                           a class a line, as .cls counts them
    FOLDER/zeroshot_classification_templates.txt    a prompt a line, {c} is the class
    FOLDER/dataset_type.txt                         "retrieval": KEY.txt has a caption a line

In: such a folder. Out: what `ZeroShot` or `Retrieval` measures there.
"""

from collections.abc import Mapping

import numpy as np

from ...data.image_sets import ImageSet
from .encode import Encoder
from .retrieval import Retrieval
from .task import Task
from .zeroshot import ZeroShot

TYPE, CLASSES = "dataset_type.txt", "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"


class ClipBenchmark(Task):
    """Zero-shot classification, or retrieval, whichever the data set is made for.

    Args:
        data: The shards of one split; beside their folder lie the files above.
        k: For retrieval: how many of the nearest are looked at.
    """

    def __init__(self, data: ImageSet, k: list[int] | tuple[int, ...] = (1, 5, 10)):
        super().__init__(data)
        self.retrieval = Retrieval(data, captions="txt", separator="\n", k=k)
        self.zero_shot = ZeroShot(data, label="cls", classes=CLASSES, templates=TEMPLATES)

    def prepare(self) -> np.ndarray:
        """Finds out what the data set is for, and prepares that.

        Raises:
            ValueError: It is for neither, or its data cannot be used.
        """
        kind = self.data.root / TYPE
        found = kind.read_text().strip() if kind.is_file() else "classification"
        if found not in ("retrieval", "classification"):
            raise ValueError(
                f"{kind} says '{found}'; zero-shot classification and retrieval can be measured"
            )
        if found == "classification" and not (self.data.root / CLASSES).is_file():
            raise ValueError(
                f"{self.data.root.resolve()} has no {CLASSES}: data_root has to be the folder of "
                "one data set of CLIP_benchmark, which holds test/*.tar and that file"
            )
        self._task: Task = self.retrieval if found == "retrieval" else self.zero_shot
        self._chosen = self._task.prepare()
        return self._chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float]:
        """Returns the measures of the task that the data set is for."""
        return self._task.measure(encoder, chosen)
