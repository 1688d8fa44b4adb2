"""Retrieval both ways, with any number of captions an image and of images a caption."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...data.image_sets import ImageSet
from .encode import Encoder
from .outcomes import Outcomes
from .ranks import ranks, recall_at
from .task import Task


class Retrieval(Task):
    """Recall at k: the fraction of queries with a right answer among the k nearest.

    Measures: `image_to_text_recall@k` over images, `text_to_image_recall@k` over distinct texts.
    Equal captions are one text, and all of its images are right for it: an image is not counted
    wrong for finding its own caption written under another image.

    Args:
        data: the images.
        captions: the field with an image's caption, or a JSON list of them.
        separator: text between the captions of one field ("\\n": one a line); None: not cut.
        k: numbers of nearest candidates that count.
        template: what is encoded of a caption `{c}`, such as the language before it (`deu_Latn
            {c}`, see `counterpoint.data.text.languages`).
        where: see `Task`.
        by: see `Task`; the candidates are then those of the same group.
    """

    def __init__(
        self,
        data: ImageSet,
        captions: str = "txt",
        separator: str | None = None,
        k: Sequence[int] = (1, 5, 10),
        where: dict[str, Any] | None = None,
        by: str | None = None,
        template: str = "{c}",
    ):
        super().__init__(data, where, by)
        check_k(k)
        if "{c}" not in template:
            raise ValueError(f"template: '{template}' has no {{c}} for the caption")
        self.template = template
        self.captions = captions
        self.separator = separator
        self.k = tuple(k)

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._captions = dict(zip(chosen.tolist(), self.captions_of(chosen), strict=True))
        return chosen

    def captions_of(self, chosen: np.ndarray) -> list[list[str]]:
        """Returns the captions of each chosen item."""
        return self.data.lists(self.captions, chosen, self.separator)

    def pairs(self, chosen: np.ndarray) -> tuple[list[str], list[list[int]], list[list[int]]]:
        """Returns the distinct texts, each image's texts and each text's images (as positions)."""
        position: dict[str, int] = {}
        of_image = [
            sorted({position.setdefault(text, len(position)) for text in self._captions[i]})
            for i in chosen.tolist()
        ]
        of_text: list[list[int]] = [[] for _ in position]
        for image, texts in enumerate(of_image):
            for text in texts:
                of_text[text].append(image)
        return list(position), of_image, of_text

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        texts, of_image, of_text = self.pairs(chosen)
        image = encoder.images(self.data, chosen)
        text = encoder.texts([self.template.replace("{c}", caption) for caption in texts])
        ways = {
            "image_to_text": (ranks(image, text, of_image), self.keys(chosen)),
            "text_to_image": (ranks(text, image, of_text), texts),
        }
        return {
            f"{way}_recall@{k}": Outcomes(recall_at(found, k), found.numpy() < k, keys)
            for way, (found, keys) in ways.items()
            for k in self.k
        }


class TextRetrieval(Task):
    """Recall at k among texts: each sample's query finds its answer among all answers.

    Measures `recall@k` over distinct queries. Equal answers are one text, which is right for all
    their queries. No image is encoded: a field in another language or another wording will do.

    Args:
        data: the samples.
        queries: the field with a sample's query.
        answers: the field with its answer.
        k: numbers of nearest answers that count.
        where: see `Task`.
        by: see `Task`; the answers are then those of the same group.
    """

    def __init__(
        self,
        data: ImageSet,
        queries: str,
        answers: str,
        k: Sequence[int] = (1, 5, 10),
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        check_k(k)
        self.queries, self.answers = queries, answers
        self.k = tuple(k)

    def image_sets(self) -> dict[ImageSet, np.ndarray]:
        return {}

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        queries, answers = (
            [str(value) for value in self.data.values(field, chosen)]
            for field in (self.queries, self.answers)
        )
        place = {answer: number for number, answer in enumerate(dict.fromkeys(answers))}
        right: dict[str, set[int]] = {}
        for query, answer in zip(queries, answers, strict=True):
            right.setdefault(query, set()).add(place[answer])
        of_query = [sorted(numbers) for numbers in right.values()]
        found = ranks(encoder.texts(list(right)), encoder.texts(list(place)), of_query)
        return {
            f"recall@{k}": Outcomes(recall_at(found, k), found.numpy() < k, list(right))
            for k in self.k
        }


def check_k(k: Sequence[int]) -> None:
    """Refuses what are no numbers of candidates."""
    if not k or not all(isinstance(n, int) and n > 0 for n in k):
        raise ValueError(f"k: {k!r} is not a list of positive whole numbers")
