"""Replaced attributes: a caption against itself with one attribute of another image.

The caption is written from the image's own fields, as "a red outline icon of home"; in a wrong one
a single field has a value that other images of the set have. SugarCrepe (Hsieh et al. 2023) asks
the like of photographs (`replace-obj`, `replace-att`), with captions by a language model.
"""

import random
import string
from collections.abc import Mapping, Sequence

import numpy as np

from ....data.hashing import text_hash
from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes, part_of
from .caption_choice import CaptionChoice, Question


class ReplacedAttributes(CaptionChoice):
    """Accuracy of telling an image's caption from those with one attribute replaced.

    Measures: `accuracy` over questions, one for each image and attribute; `ATTRIBUTE_accuracy` of
    each; and `mean_category_accuracy`, the plain mean of these. Chance is 1 / `captions`.

    Args:
        data: the images.
        template: the caption, with fields of an image in braces: `a {color} icon of {concept}`.
        attributes: the fields to replace, one at a time; None: all of the template.
        captions: in a question, the true one included; fewer where the set has fewer values.
        seed: of the wrong values, which also depend on image and attribute.
        where: see `Task`; an image whose field is absent or empty is left out, too.
        by: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        template: str,
        attributes: Sequence[str] | None = None,
        captions: int = 4,
        seed: int = 0,
        where: dict[str, object] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, category="attribute", where=where, by=by)
        self.fields = [field for _, field, _, _ in string.Formatter().parse(template) if field]
        self.attributes = tuple(self.fields if attributes is None else dict.fromkeys(attributes))
        unknown = sorted(set(self.attributes) - set(self.fields))
        if unknown or not self.attributes:
            raise ValueError(
                f"attributes: {', '.join(unknown) or 'none'}: name some of the template "
                f"'{template}', whose fields stand in braces"
            )
        if captions < 2:
            raise ValueError(f"captions is {captions}; a choice takes two, the true one included")
        self.template = template
        self.captions = captions
        self.seed = seed

    def read(self, data: ImageSet, file: str | None, chosen: np.ndarray) -> list[Question]:
        """Writes the questions about the chosen images."""
        own = {
            item: {field: data.items[item].get(field) for field in self.fields}
            for item in chosen.tolist()
        }
        whole = {
            item: values for item, values in own.items() if all(map(_is_said, values.values()))
        }
        if not whole:
            raise ValueError(
                f"template: no image of {data} has all of {', '.join(self.fields)}, which "
                f"'{self.template}' is made of"
            )
        present = {
            name: sorted({str(values[name]) for values in whole.values()})
            for name in self.attributes
        }
        for name, values in present.items():
            if len(values) < 2:
                raise ValueError(
                    f"attributes: all images of {data} have the same {name}, '{values[0]}': "
                    "nothing can stand in its place, so leave it out"
                )
        questions = []
        for item, values in whole.items():
            key = str(data.items[item].get("key"))
            for name in self.attributes:
                others = [value for value in present[name] if value != str(values[name])]
                rng = random.Random(text_hash(self.seed, key, name))
                drawn = rng.sample(others, min(self.captions - 1, len(others)))
                right = self.template.format(**values)
                wrong = tuple(self.template.format(**{**values, name: other}) for other in drawn)
                questions.append(Question(f"{key}#{name}", item, right, wrong, name))
        return questions

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        values = dict(super().measure(encoder, chosen))
        accuracy = values["accuracy"]
        assert isinstance(accuracy, Outcomes)
        replaced = np.array([key.rpartition("#")[2] for key in accuracy.keys])
        for name in self.attributes:
            values[f"{name}_accuracy"] = part_of(accuracy, replaced == name)
        return values


def _is_said(value: object) -> bool:
    return value is not None and str(value) != ""
