"""A language model as a teacher: captions' vectors alone, and no images."""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from ..image import ImageTower
from ..text.base import Ids, Lengths, TextTower
from ..text.language_model import LanguageModel
from ..two_tower import TwoTower
from .frozen import FrozenTowers, Teacher


class LanguageTeacher(Teacher):
    """Features `text` (of length one) and `text.raw` of a frozen language model.

    Args:
        language_model: it reads the ids of its own tokenizer: a text of its own (data.texts.NAME),
            unless the run's captions have that tokenizer.
        context_length: tokens that it reads at most.
    """

    def __init__(self, language_model: LanguageModel, context_length: int = 512):
        self.language_model, self.context_length = language_model, context_length

    def build(self, load: Callable[[str | None], TwoTower]) -> FrozenTowers:
        width = self.language_model.width
        text = _Captions(self.language_model, width, self.context_length)
        towers = TwoTower(
            _NoImages(width), text, width, image_projection="none", text_projection="none"
        )
        towers.logit_scale.data.fill_(math.nan)  # it has none
        return FrozenTowers(towers)

    def tokenize(self, texts: Sequence[str], length: int) -> Tensor:
        return self.language_model.tokenize(texts, length)


class _Captions(TextTower):
    """The language model, which is no part of the module: it moves by itself."""

    def __init__(self, language_model: LanguageModel, width: int, context_length: int):
        super().__init__()
        self.language_model = language_model
        self.width, self.context_length = width, context_length

    def forward(self, text: Ids, text_length: Lengths) -> Float[Tensor, "n width"]:
        return self.language_model(text, text_length)


class _NoImages(ImageTower):
    """Refuses images."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.image_size = width, 0

    def forward(self, image: Tensor, keep: None = None) -> Tensor:
        raise ValueError("a language model has no images: name features `text` of this teacher")
