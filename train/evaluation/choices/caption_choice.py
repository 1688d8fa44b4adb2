"""Caption choice: an image with its caption and others that are almost it.

As in ARO (Yuksekgonul et al., "When and Why Vision-Language Models Behave like Bags-of-Words",
2023) and SugarCrepe (Hsieh et al. 2023): a question is answered when the caption scores higher than
all wrong ones. Equal scores are a miss.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes, mean_of_groups, part_of
from ..ranks import full_precision
from ..task import Task


@dataclass(frozen=True)
class Question:
    """An image and its captions.

    Attributes:
        key: name of the question.
        item: position of the image in its set.
        right: the caption that is true.
        wrong: captions that are not, at least one.
        category: what is changed in the wrong ones; "" where it is not said.
    """

    key: str
    item: int
    right: str
    wrong: tuple[str, ...]
    category: str = ""


class CaptionChoice(Task):
    """Accuracy of choosing an image's caption among similar wrong ones.

    Measures: `accuracy` over questions; with `category` also `mean_category_accuracy`, the plain
    mean of the categories' accuracies, as ARO reports it. Chance is 1 / captions. Models without an
    image may do well on ARO, whose wrong captions are often no sentences: read SugarCrepe first.

    Args:
        data: the images.
        questions: a JSON file (a list, or a mapping of names to questions) or one with a JSON
            object a line, relative to the data root; None: the images' own fields are the
            questions.
        image: the field of a question with its image: the `key`, which is the path in a folder.
        right: the field with the true caption.
        wrong: the field with a wrong caption or a list of them; or several such fields.
        category: the field with the kind of question.
        where: see `Task`; questions about other images are left out.
        by: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        questions: str | None = None,
        image: str = "filename",
        right: str = "caption",
        wrong: str | list[str] = "negative_caption",
        category: str | None = None,
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        self.questions = questions
        self.image = image
        self.right = right
        self.wrong = [wrong] if isinstance(wrong, str) else list(wrong)
        self.category = category

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._questions = self.read(self.data, self.questions, chosen)
        self._chosen = np.unique([question.item for question in self._questions])
        return self._chosen

    def read(self, data: ImageSet, file: str | None, chosen: np.ndarray) -> list[Question]:
        """Reads questions about the chosen images.

        Raises:
            ValueError: there is no such file, a question lacks something, or none is about them.
        """
        entries = self._entries(data, file, chosen)
        questions = [self._question(name, item, entry) for name, item, entry in entries]
        if not questions:
            raise ValueError(f"questions: none of {file} is about the images of {data}")
        return questions

    def _entries(
        self, data: ImageSet, file: str | None, chosen: np.ndarray
    ) -> list[tuple[str, int, Mapping[str, Any]]]:
        if file is None:
            return [
                (str(data.items[i].get("key")), i, data.items[i].fields) for i in chosen.tolist()
            ]
        position = {str(item.get("key")): i for i, item in enumerate(data.items)}
        wanted, found = set(chosen.tolist()), []
        for name, entry in read_entries(data.root / file):
            key = str(entry.get(self.image))
            if key not in position:
                raise ValueError(
                    f"questions: '{name}' of {file} is about the image '{key}' ({self.image}), "
                    f"which is not in {data}; its first is called '{next(iter(position))}'"
                )
            if position[key] in wanted:
                found.append((name, position[key], entry))
        return found

    def _question(self, name: str, item: int, entry: Mapping[str, Any]) -> Question:
        texts: list[str] = []
        for field in self.wrong:
            value = entry.get(field)
            values = value if isinstance(value, list) else [value]
            texts += [str(text).strip() for text in values if text is not None]
        right = entry.get(self.right)
        if not isinstance(right, str) or not texts:
            raise ValueError(
                f"question '{name}' has no true caption '{self.right}' or no wrong one in "
                f"{', '.join(self.wrong)}; its fields are {', '.join(sorted(entry))}"
            )
        category = "" if self.category is None else str(entry.get(self.category))
        return Question(name, item, right.strip(), tuple(texts), category)

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        items = set(chosen.tolist())
        questions = [question for question in self._questions if question.item in items]
        is_right = self.answers(encoder, questions)
        keys = [question.key for question in questions]
        accuracy = Outcomes(float(is_right.mean()), is_right, keys)
        values: dict[str, float | Outcomes] = {"accuracy": accuracy}
        if self.category is not None:
            kinds = np.array([question.category for question in questions])
            parts = [part_of(accuracy, kinds == kind) for kind in sorted(set(kinds.tolist()))]
            values["mean_category_accuracy"] = mean_of_groups(parts)
        return values

    def answers(self, encoder: Encoder, questions: Sequence[Question]) -> np.ndarray:
        """Returns which questions are answered rightly, bool [questions]."""
        texts = caption_positions(questions)
        features = encoder.texts(list(texts))
        image = encoder.images(self.data, [question.item for question in questions])
        return choices(image, features, questions, texts)


def caption_positions(questions: Sequence[Question]) -> dict[str, int]:
    """Returns a position of each distinct caption."""
    texts: dict[str, int] = {}
    for question in questions:
        for text in (question.right, *question.wrong):
            texts.setdefault(text, len(texts))
    return texts


def choices(
    image: Tensor, text: Tensor, questions: Sequence[Question], positions: Mapping[str, int]
) -> np.ndarray:
    """Returns whether the true caption scores higher than all wrong ones, bool [questions].

    Args:
        image: features of each question's image [questions, k].
        text: features of captions [captions, k].
        questions: in the order of `image`.
        positions: of captions in `text`.
    """
    row = [i for i, question in enumerate(questions) for _ in question.wrong]
    wrong = [positions[text] for question in questions for text in question.wrong]
    right = [positions[question.right] for question in questions]
    rows = torch.tensor(row, device=image.device)
    with full_precision(image.device):
        own = (image * text[torch.tensor(right, device=image.device)]).sum(1)
        others = (image[rows] * text[torch.tensor(wrong, device=image.device)]).sum(1)
    is_right = torch.ones(len(questions), dtype=torch.bool, device=image.device)
    # "not below" also counts NaN, which compares to nothing.
    is_right[rows[~(others < own[rows])]] = False
    return is_right.cpu().numpy()


def read_entries(path: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the questions of a file and their names."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"questions: {path} cannot be read ({error.strerror})") from error
    try:
        if path.suffix == ".jsonl":
            loaded: Any = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            loaded = json.loads(text)
    except ValueError as error:
        raise ValueError(f"questions: {path} is not JSON ({error})") from error
    pairs = loaded.items() if isinstance(loaded, Mapping) else enumerate(loaded)
    return [(str(name), entry) for name, entry in pairs]
