"""Which of a sample's texts becomes its caption.

In: a raw sample and one uniform number of this sample, epoch and text. Out: the caption. A field is
an extension (`txt`) or a value of a JSON member (`json:caption`), which may be a list of texts. So
a choice among rewrites is a function of (seed, epoch, key), the same on any number of workers.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from ..errors import SampleError
from ..shards.fields import field_texts
from ..shards.reader import RawSample

# A mark that ends a sentence, closing quotes and brackets, then a space: "3.5" and "e.g.," do not
# match. None begins inside a run of marks: thousands of dots would take seconds.
_SENTENCE_END = re.compile(r"(?<![.!?。！？])[.!?。！？]+[\"'”’)\]]*(?=\s|$)|(?<=[。！？])")


class CaptionPolicy(ABC):
    """Chooses the caption of a sample.

    Attributes:
        fields: every field that the policy may read.
        draws_as: texts of a sample whose policies have this name in common are given the same draw;
            "": one of their own.
    """

    fields: tuple[str, ...]
    draws_as: str = ""

    @abstractmethod
    def __call__(self, sample: RawSample, draw: float) -> str:
        """Returns the caption, never blank.

        Args:
            sample: a raw sample.
            draw: uniform in [0, 1), of this sample and epoch.

        Raises:
            SampleError: there is no text (`no_caption`), or it is unusable (`bad_text`).
        """


class FirstFound(CaptionPolicy):
    """The first field that has text; of a list, its first text.

    Args:
        fields: fields in order of preference.

    Raises:
        ValueError: no fields.
    """

    def __init__(self, fields: Sequence[str] = ("txt",)):
        self.fields = _fields(fields)

    def __call__(self, sample: RawSample, draw: float) -> str:
        for field in self.fields:
            for text in field_texts(sample, field):
                return text
        raise _nothing_in(sample, self.fields)


class WeightedChoice(CaptionPolicy):
    """A random field of those that have text; of a list, a random text.

    Text rewriting as augmentation (Fan et al., "Improving CLIP Training with Language Rewrites",
    2023, section 3.3) is `{txt: 1, json:rewrites: 4}` for four rewrites beside the original.

    Args:
        weights: how often each field is taken, relative to the others that have text.

    Raises:
        ValueError: no weight is above 0, or one is negative.
    """

    def __init__(self, weights: dict[str, float]):
        if not weights or min(weights.values()) < 0 or not max(weights.values()) > 0:
            raise ValueError(f"weights={weights} must name fields and hold a weight above 0")
        self.weights = {field: float(weight) for field, weight in weights.items() if weight > 0}
        self.fields = tuple(self.weights)

    def __call__(self, sample: RawSample, draw: float) -> str:
        present = {field: texts for field in self.fields if (texts := field_texts(sample, field))}
        if not present:
            raise _nothing_in(sample, self.fields)
        remainder = draw * sum(self.weights[field] for field in present)
        for field, texts in present.items():
            weight = self.weights[field]
            if remainder < weight or field == next(reversed(present)):
                # The remainder of the draw chooses within the list.
                return texts[min(int(remainder / weight * len(texts)), len(texts) - 1)]
            remainder -= weight
        raise AssertionError("the last field takes the rest")


class FirstSentence(CaptionPolicy):
    """The first sentence of the caption that another policy chooses.

    Args:
        of: the policy; the first field found by default.
    """

    def __init__(self, of: CaptionPolicy | None = None):
        self.of = of or FirstFound()
        self.fields = self.of.fields

    def __call__(self, sample: RawSample, draw: float) -> str:
        text = self.of(sample, draw).strip()
        end = _SENTENCE_END.search(text)
        return text[: end.end()] if end and end.end() else text


class AnyText(CaptionPolicy):
    """A random text of all that the fields have, each as likely as any other.

    What `WeightedChoice` does where every sample has equally many texts; here samples may have any
    number of them.

    Args:
        fields: where the texts are.

    Raises:
        ValueError: no fields.
    """

    def __init__(self, fields: Sequence[str]):
        self.fields = _fields(fields)

    def __call__(self, sample: RawSample, draw: float) -> str:
        texts = [text for field in self.fields for text in field_texts(sample, field)]
        if not texts:
            raise _nothing_in(sample, self.fields)
        return texts[min(int(draw * len(texts)), len(texts) - 1)]


class AnyOf(CaptionPolicy):
    """What a random one of several policies chooses, each as likely as any other.

    Args:
        policies: the policies; which of them is drawn tells nothing about what it draws.

    Raises:
        ValueError: no policies.
    """

    def __init__(self, policies: Sequence[CaptionPolicy]):
        if not policies:
            raise ValueError("AnyOf has no policies; give one or more")
        self.policies = list(policies)
        self.fields = tuple(dict.fromkeys(field for each in policies for field in each.fields))

    def __call__(self, sample: RawSample, draw: float) -> str:
        # The remainder of the draw is as uniform as the draw itself.
        number, rest = divmod(draw * len(self.policies), 1)
        return self.policies[min(int(number), len(self.policies) - 1)](sample, rest)


class NotTooShort(CaptionPolicy):
    """The caption that a policy chooses; where it has too few words, that of another policy.

    Rewrites that a language model failed at are replaced by the original so (LaCLIP: below two
    words; `CsvDatasetAugCap` of LijieFan/LaCLIP).

    Args:
        of: the policy.
        otherwise: the other one, also where `of` has none; the first field found by default.
        min_words: so many words between spaces are enough.
    """

    def __init__(
        self, of: CaptionPolicy, otherwise: CaptionPolicy | None = None, min_words: int = 2
    ):
        self.of, self.otherwise = of, otherwise or FirstFound()
        self.min_words = min_words
        self.fields = tuple(dict.fromkeys([*of.fields, *self.otherwise.fields]))

    def __call__(self, sample: RawSample, draw: float) -> str:
        try:
            text = self.of(sample, draw)
        except SampleError as error:
            if error.cause != "no_caption":
                raise
            text = ""
        return text if len(text.split()) >= self.min_words else self.otherwise(sample, draw)


class Joined(CaptionPolicy):
    """The texts of several fields, one after the other: a long caption; what lacks is left out.

    Args:
        fields: in this order; of a list, all texts.
        separator: between two texts.

    Raises:
        ValueError: no fields.
    """

    def __init__(self, fields: Sequence[str], separator: str = ". "):
        self.fields = _fields(fields)
        self.separator = separator

    def __call__(self, sample: RawSample, draw: float) -> str:
        texts = [text.strip() for field in self.fields for text in field_texts(sample, field)]
        if not texts:
            raise _nothing_in(sample, self.fields)
        return self.separator.join(texts)


def policy_of(caption: CaptionPolicy | Sequence[str]) -> CaptionPolicy:
    """Returns a policy as it is, and `FirstFound` for a list of fields."""
    return caption if isinstance(caption, CaptionPolicy) else FirstFound(caption)


def _fields(fields: Sequence[str]) -> tuple[str, ...]:
    if isinstance(fields, str) or not fields:
        raise ValueError(f"fields={fields!r} must be a list such as [txt, json:caption]")
    return tuple(fields)


def _nothing_in(sample: RawSample, fields: Sequence[str]) -> SampleError:
    return SampleError("no_caption", f"'{sample['__key__']}' has no text in {', '.join(fields)}")
