"""Retrieval and zero-shot classification in several languages, and their means.

In: images with a name in each language (the emoji's `names.de`). Out: a number a language, the mean
over all, and the mean over those beside the language that the model knew before.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ...data.image_sets import ImageSet
from .encode import Encoder
from .outcomes import Outcomes, mean_of_groups
from .retrieval import Retrieval
from .task import Task
from .zero_shot.classification import ZeroShot

PLACE = "{language}"


class ByLanguage(Task):
    """Measures a task in each language: `TASK_de`; all languages count alike in the means.

    `TASK` is the mean over all languages, `TASK_except_en` the one without the language `apart`.
    """

    def __init__(
        self,
        data: ImageSet,
        languages: Sequence[str],
        field: str,
        where: dict[str, Any] | None = None,
        apart: str | None = "en",
    ):
        super().__init__(data, where)
        if isinstance(languages, str) or len(set(languages)) != len(languages) or not languages:
            raise ValueError(f"languages: {languages!r} is not a list of languages, each once")
        if PLACE not in field:
            raise ValueError(
                f"'{field}' names one field for all languages; write {PLACE} in the place of the "
                f"language, as in names.{PLACE}"
            )
        if apart is not None and (apart not in languages or len(languages) == 1):
            raise ValueError(
                f"apart: '{apart}' has to be one of several languages ({', '.join(languages)}); "
                "null leaves out the mean over the others"
            )
        self.fields = {language: field.replace(PLACE, language) for language in languages}
        self.apart = apart
        self.parts: Mapping[str, Task] = {}

    def prepare(self) -> np.ndarray:
        for part in self.parts.values():
            part.prepare()
        return super().prepare()

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        return means(self._by_language(encoder, chosen))

    def run(self, encoder: Encoder) -> Iterator[tuple[str, str, Any]]:
        found = self._by_language(encoder, self._chosen)
        groups = {**found, "": means(found)}
        if self.apart is not None:
            others = {language: found[language] for language in found if language != self.apart}
            groups[f"except_{self.apart}"] = means(others)
        for group, values in groups.items():
            for name, value in values.items():
                yield group, name, value

    @abstractmethod
    def measure_in(self, language: str, encoder: Encoder, chosen: np.ndarray) -> dict[str, Any]:
        """Returns the measures of one language by name."""

    def _by_language(self, encoder: Encoder, chosen: np.ndarray) -> dict[str, dict[str, Any]]:
        return {language: self.measure_in(language, encoder, chosen) for language in self.fields}


class RetrievalByLanguage(ByLanguage):
    """`Retrieval` by names in each language, and `recall@k`, the mean of both directions.

    Equal names are one text, and all of its images are right for it.

    Args:
        data: the images.
        languages: what stands for {language} in `captions`.
        captions: the field with a name, or a JSON list of them.
        k: see `Retrieval`.
        where: see `Task`.
        apart: the language that one of the two means leaves out; None: there is one mean.
        template: what is encoded of a name `{c}` in the language `{language}`, for towers that are
            told the language; or a mapping from language to that language's.
    """

    def __init__(
        self,
        data: ImageSet,
        languages: Sequence[str],
        captions: str = "names.{language}",
        k: Sequence[int] = (1, 5, 10),
        where: dict[str, Any] | None = None,
        apart: str | None = "en",
        template: str | dict[str, str] = "{c}",
    ):
        super().__init__(data, languages, captions, where, apart)
        self.k = tuple(k)
        self.parts = {
            language: Retrieval(
                data, field, k=k, where=where, template=in_language(template, language)
            )
            for language, field in self.fields.items()
        }

    def measure_in(self, language: str, encoder: Encoder, chosen: np.ndarray) -> dict[str, Any]:
        values: dict[str, Any] = dict(self.parts[language].measure(encoder, chosen))
        for k in self.k:
            ways = [values[f"{way}_recall@{k}"] for way in ("image_to_text", "text_to_image")]
            values[f"recall@{k}"] = mean_of_groups(ways)
        return values


class ZeroShotByLanguage(ByLanguage):
    """`ZeroShot` among the names of each language.

    Args:
        data: the images.
        languages: what stands for {language} in `label`.
        label: the field with an image's name, which is its class: equal names are one class.
        templates: prompts with `{c}` for the name and, where the tower is told it, `{language}`; or
            a mapping from language to that language's prompts; None: the name alone.
        where: see `Task`.
        apart: the language that one of the two means leaves out; None: there is one mean.
    """

    def __init__(
        self,
        data: ImageSet,
        languages: Sequence[str],
        label: str = "names.{language}",
        templates: list[str] | dict[str, list[str]] | None = None,
        where: dict[str, Any] | None = None,
        apart: str | None = "en",
    ):
        super().__init__(data, languages, label, where, apart)
        prompts = templates
        if not isinstance(prompts, dict):
            given: list[str] = prompts or ["{c}"]
            prompts = {name: [in_language(t, name) for t in given] for name in languages}
        if missing := [language for language in languages if not prompts.get(language)]:
            raise ValueError(f"`templates` has no prompts in the language '{missing[0]}'")
        self.parts = {
            language: ZeroShot(data, field, templates=prompts[language], where=where)
            for language, field in self.fields.items()
        }

    def measure_in(self, language: str, encoder: Encoder, chosen: np.ndarray) -> dict[str, Any]:
        return dict(self.parts[language].measure(encoder, chosen))


def in_language(template: str | Mapping[str, str], language: str) -> str:
    """Returns the template of a language, with its name in the place of `{language}`.

    Raises:
        ValueError: there is none.
    """
    if not isinstance(template, str):
        if language not in template:
            raise ValueError(f"`template` has none for the language '{language}'")
        template = template[language]
    return template.replace(PLACE, language)


def means(by_language: Mapping[str, Mapping[str, Any]]) -> dict[str, float | Outcomes]:
    """Returns the plain mean over languages of those measures that all have."""
    first, *others = by_language.values()
    names = [name for name in first if all(name in values for values in others)]
    return {name: mean_of_groups([v[name] for v in by_language.values()]) for name in names}
