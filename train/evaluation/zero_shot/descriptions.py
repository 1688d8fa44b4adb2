"""Zero-shot classification by descriptions of the classes.

Menon and Vondrick, "Visual Classification via Description from Large Language Models" (2023),
section 2: a class's score is the mean, over its descriptions, of the image's similarity with a
prompt that names the class and one description. So, unlike prompts of an ensemble, the mean feature
is not normalised again.
"""

import json
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..encode import Encoder
from ..prompts import chunks
from .classification import ZeroShot

VERBS = ("has", "have", "often", "typically", "may", "can", "usually")
STATES = ("a", "an", "the", "used")


class DescribedZeroShot(ZeroShot):
    """Accuracy of classifying by descriptions of the classes.

    Measures and further arguments are those of `ZeroShot`.

    Args:
        descriptions: of each class name a list of descriptions ("four legs", "a long tail"), or a
            JSON file with such lists, as the paper's authors publish them. Beginnings decide what
            connects them: `which is a long tail`, `which has four legs`, `which often sleeps`.
        template: the prompt, with `{c}` for the class and `{d}` for the connected description.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(
        self,
        descriptions: str | dict[str, list[str]],
        template: str = "a photo of a {c}, {d}.",
        **zeroshot,
    ):
        super().__init__(**zeroshot)
        if "{c}" not in template or "{d}" not in template:
            raise ValueError(
                f"template '{template}' needs {{c}} for the class, {{d}} to describe it"
            )
        self.descriptions = descriptions
        self.template = template

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        described = self.descriptions
        if isinstance(described, str):
            path = self.data.root / described
            if not path.is_file():
                raise ValueError(f"descriptions: there is no file {path}")
            described = json.loads(path.read_text())
        if not isinstance(described, Mapping):
            raise ValueError("descriptions: give a list of descriptions for each class name")
        if missing := [name for name in self._names if not described.get(name)]:
            raise ValueError(f"descriptions: there are none of the class '{missing[0]}'")
        self._prompts = [
            [
                self.template.replace("{c}", name).replace("{d}", connected(str(each)))
                for each in described[name]
            ]
            for name in self._names
        ]
        return chosen

    def classifier(self, encoder: Encoder) -> Tensor:
        parts: list[Tensor] = []
        for chunk in chunks(self._prompts):
            features = encoder.texts([text for texts in chunk for text in texts])
            # A mean of products with the image is the product with the mean.
            parts += [part.mean(0) for part in features.split([len(texts) for texts in chunk])]
        return torch.stack(parts)


def connected(description: str) -> str:
    """Returns a description as a relative clause.

    >>> connected("four legs"), connected("a long tail"), connected("often sleeps")
    ('which has four legs', 'which is a long tail', 'which often sleeps')
    """
    first = description.split(maxsplit=1)[0].lower()
    if first in VERBS:
        return f"which {description}"
    return f"which is {description}" if first in STATES else f"which has {description}"
