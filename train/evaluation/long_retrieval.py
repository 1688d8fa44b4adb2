"""Retrieval with long captions, which are put together from several fields of an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...data.image_sets import ImageSet
from .retrieval import Retrieval


class LongRetrieval(Retrieval):
    """`Retrieval` whose caption of an image is what several fields have, one after the other.

    As `counterpoint.data.text.captions.Joined` does in training. Measures: those of `Retrieval`.

    Args:
        data: the images.
        fields: in this order, each a text or a list of texts; an image may lack some of them.
        separator: between two texts.
        retrieval: of `Retrieval`, without `captions` and its `separator`.

    Raises:
        ValueError: no fields.
    """

    def __init__(
        self, data: ImageSet, fields: Sequence[str], separator: str = ". ", **retrieval: Any
    ):
        super().__init__(data, **retrieval)
        if isinstance(fields, str) or not fields:
            raise ValueError(f"fields: {fields!r} must be a list such as [caption, names.fr]")
        self.fields = tuple(fields)
        self.between = separator

    def captions_of(self, chosen: np.ndarray) -> list[list[str]]:
        """Returns the one long caption of each item.

        Raises:
            ValueError: an item has none of the fields.
        """
        return [[self._joined(index)] for index in chosen.tolist()]

    def _joined(self, index: int) -> str:
        item = self.data.items[index]
        texts = []
        for name in self.fields:
            value = item.get(name)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str | int) and str(text).strip():
                    texts.append(str(text).strip())
        if not texts:
            raise ValueError(
                f"sample {item.get('key')} in {item.path} has no text in {', '.join(self.fields)}; "
                f"fields there: {', '.join(sorted(item.fields))}"
            )
        return self.between.join(texts)
