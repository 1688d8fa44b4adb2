"""Zero-shot classification: the class whose prompts lie nearest to the image.

The classifier is CLIP's ensemble: every prompt's feature is normalised, a class is the mean of its
prompts, normalised again (Radford et al. 2021, section 3.1.4). Under other similarities than the
cosine a class is the mean of its prompts' raw features.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ....data.image_sets import ImageSet
from ..accuracy import accuracies
from ..details import Detail
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import ranks
from ..task import Task


class ZeroShot(Task):
    """Accuracy of classifying images by prompts alone.

    Measures: `top1`, `top5` (with more than five classes), and `mean_per_class_recall`, the mean of
    top-1 over the classes that have images. Two classes with equal prompts tie, and ties are
    misses: give every class a name of its own.

    Args:
        data: the images.
        label: the field that names an image's class; None: the folder, or `cls` in shards.
        classes: the classes' names in prompts: a list of names (the label is a name, or
            its position in the list), a mapping from label to name, or a file with a name a line
            or either as JSON; None: the distinct labels are the names.
        templates: prompts with `{c}` for the name: a list (of texts, or of functions of the name,
            as open_clip has them), a file with one a line, or a mapping from name to that class's
            own prompts.
        where: see `Task`.
        by: see `Task`; the classes are those of all groups.
    """

    def __init__(
        self,
        data: ImageSet,
        label: str | None = None,
        classes: list[str] | dict[str, str] | str | None = None,
        templates: Sequence[str | Callable[[str], str]] | dict[str, list[str]] | str = (
            "a photo of a {c}."
        ),
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        self.label = label or data.default_label
        self.classes = classes
        self.templates = templates

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        labels = self.data.values(self.label, chosen)
        self._names, index = self._class_index([*labels, *self.further_labels()])
        self._index = index
        unknown = sorted(set(labels) - set(index))
        if unknown:
            raise ValueError(
                f"{len(unknown)} labels '{self.label}' of {self.data} are not among the "
                f"{len(self._names)} classes, such as '{unknown[0]}'; add them to `classes`, or "
                "leave those images out with `where`"
            )
        self._prompts = self.class_prompts(self.templates)
        self._targets = dict(zip(chosen.tolist(), (index[text] for text in labels), strict=True))
        return chosen

    def measure(
        self, encoder: Encoder, chosen: np.ndarray
    ) -> Mapping[str, float | Outcomes | Detail]:
        targets = [self.target(i) for i in chosen.tolist()]
        classifier = self.classifier(encoder)
        image_ranks = ranks(encoder.images(self.data, chosen), classifier, [[t] for t in targets])
        return accuracies(image_ranks, targets, self.keys(chosen), len(self._names))

    def further_labels(self) -> list[str]:
        """Returns labels of images beside the ones that are measured, such as training images."""
        return []

    def target(self, index: int) -> int:
        """Returns the class of an image; after `prepare`."""
        return self._targets[index]

    def classifier(self, encoder: Encoder) -> Tensor:
        """Returns one feature for each class, float32 [classes, k]."""
        return encoder.mean_texts(encoder.prompt_means(self._prompts))

    def _class_index(self, labels: list[str]) -> tuple[list[str], dict[str, int]]:
        """Returns the class names and the class of every label."""
        classes: Any = self.classes
        if classes is None:
            classes = sorted(set(labels))
        elif isinstance(classes, str):
            classes = _read(self.data.root / classes, "classes")
        if isinstance(classes, Mapping):
            return _texts(classes.values()), {str(c): i for i, c in enumerate(classes)}
        names = _texts(classes)
        index = {name: i for i, name in enumerate(names)}
        if not set(labels) <= set(index) and all(text.isdigit() for text in labels):
            return names, {str(i): i for i in range(len(names))}
        if len(index) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(
                f"the class '{twice}' is listed twice in `classes`, so that its label means two "
                "classes; give every class a name of its own, or a mapping from label to name"
            )
        return names, index

    def class_prompts(self, templates: Any) -> list[list[str]]:
        """Returns the prompts of each class from what `templates` may be; after its name is known.

        Raises:
            ValueError: a prompt has no place for the name, or a class has no prompts.
        """
        if isinstance(templates, str):
            is_prompt = "{c}" in templates
            templates = [templates] if is_prompt else _read(self.data.root / templates, "templates")
        if isinstance(templates, Mapping):
            missing = [name for name in self._names if not templates.get(name)]
            if missing:
                raise ValueError(f"`templates` has no prompts for the class '{missing[0]}'")
            return [[str(t).replace("{c}", n) for t in templates[n]] for n in self._names]
        templates = [t("{c}") if callable(t) else t for t in templates]
        wrong = [t for t in templates if "{c}" not in str(t)]
        if wrong or not templates:
            raise ValueError(f"`templates` needs {{c}} where the class name goes, not {wrong!r}")
        return [[str(t).replace("{c}", n) for t in templates] for n in self._names]


def _read(path: Path, what: str) -> Any:
    """Reads a JSON file, or a text file with one entry a line."""
    if not path.is_file():
        raise ValueError(f"`{what}`: there is no file {path}")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values]
