"""Two images and two captions of the same words: which belongs to which?

Thrush et al., "Winoground: Probing Vision and Language Models for Visio-Linguistic
Compositionality" (2022), section 3.1. With s(c, i) the score of a caption and an image,
an example is right

- in text, if s(c0, i0) > s(c1, i0) and s(c1, i1) > s(c0, i1);
- in image, if s(c0, i0) > s(c0, i1) and s(c1, i1) > s(c1, i0);
- as a group, if both. Chance is 1/4, 1/4 and 1/6.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision
from ..task import Task
from .caption_choice import read_entries


class Winoground(Task):
    """Text, image and group score of examples with two images and two captions.

    Measures: `text_score`, `image_score`, `group_score`. Equal scores are a miss.

    Args:
        data: the images.
        questions: a JSON file or one with a JSON object a line, relative to the data root.
        images: two fields of an example, its images: their keys (paths in a folder), with or
            without folder and ending.
        captions: two fields, the caption of each of them.
        where: see `Task`; examples with other images are left out.
    """

    def __init__(
        self,
        data: ImageSet,
        questions: str = "data/examples.jsonl",
        images: tuple[str, str] = ("image_0", "image_1"),
        captions: tuple[str, str] = ("caption_0", "caption_1"),
        where: dict[str, Any] | None = None,
    ):
        super().__init__(data, where)
        if len(images) != 2 or len(captions) != 2:
            raise ValueError(
                f"images are {list(images)} and captions {list(captions)}; an example has two of "
                "each"
            )
        self.questions = questions
        self.images = tuple(images)
        self.captions = tuple(captions)

    def prepare(self) -> np.ndarray:
        chosen = set(super().prepare().tolist())
        position = positions(self.data)
        self._names: list[str] = []
        self._items: list[list[int]] = []
        self._texts: list[list[str]] = []
        for name, entry in read_entries(self.data.root / self.questions):
            items = [self._item(name, entry, field, position) for field in self.images]
            texts = [entry.get(field) for field in self.captions]
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(
                    f"example '{name}' has no captions {' and '.join(self.captions)}; its fields "
                    f"are {', '.join(sorted(entry))}"
                )
            if chosen.issuperset(items):
                self._names.append(str(entry.get("id", name)))
                self._items.append(items)
                self._texts.append([str(text).strip() for text in texts])
        if not self._names:
            raise ValueError(
                f"questions: none of {self.questions} is about the images of {self.data}"
            )
        self._chosen = np.unique(self._items)
        return self._chosen

    def _item(
        self, name: str, entry: Mapping[str, Any], field: str, position: Mapping[str, int | None]
    ) -> int:
        key = str(entry.get(field))
        item = position.get(key)
        if item is None:
            why = "is the name of several in" if key in position else "is not in"
            raise ValueError(
                f"questions: '{name}' of {self.questions} is about the image '{key}' ({field}), "
                f"which {why} {self.data}; its first is called '{next(iter(position))}'"
            )
        return item

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        place: dict[str, int] = {}
        rows = [[place.setdefault(text, len(place)) for text in pair] for pair in self._texts]
        text = encoder.texts(list(place))[torch.tensor(rows, device=encoder.device)]
        image = encoder.images(self.data, np.concatenate(self._items)).unflatten(0, (-1, 2))
        with full_precision(encoder.device):
            # Products row by row: a batched matrix product may round with the number of rows.
            scores = (text[:, :, None] * image[:, None]).sum(3).cpu().numpy()
        own = scores[:, [0, 1], [0, 1]]
        other_text, other_image = scores[:, [1, 0], [0, 1]], scores[:, [0, 1], [1, 0]]
        in_text: np.ndarray = np.all(own > other_text, axis=1)
        in_image: np.ndarray = np.all(own > other_image, axis=1)
        is_right = {"text": in_text, "image": in_image, "group": in_text & in_image}
        return {
            f"{name}_score": Outcomes(float(values.mean()), values, self._names)
            for name, values in is_right.items()
        }


def positions(data: ImageSet) -> dict[str, int | None]:
    """Returns items by key, and by key without folder and ending (None: several have it)."""
    keys = {str(item.get("key")): i for i, item in enumerate(data.items)}
    found: dict[str, int | None] = dict(keys)
    for key, i in keys.items():
        stem = PurePosixPath(key).stem
        if stem not in keys:
            found[stem] = None if stem in found else i
    return found
