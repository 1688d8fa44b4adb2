"""Word order: a caption against its own words in another order.

Yuksekgonul et al., "When and Why Vision-Language Models Behave like Bags-of-Words, and What to Do
about It?" (2023), section 2.2: COCO-order and Flickr30k-order of ARO. Two of its four shuffles need
no tagger and are made here: groups of three words among themselves, and words within such groups.
The other two move nouns and adjectives, or all but them; captions that were shuffled so elsewhere
are wrong ones for `CaptionChoice`.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..encode import Encoder
from ..outcomes import Outcomes
from ..retrieval import Retrieval
from .caption_choice import Question, caption_positions, choices

# What ARO takes out of captions, and how many words of one it keeps.
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
MAX_WORDS = 30
# Draws until an order is another one. Two words are in their own order half of the time.
TRIES = 20


class WordOrder(Retrieval):
    """Accuracy of telling a caption from its own words in other orders.

    Measures: `accuracy`, the share of captions that score higher than all shuffled ones, as ARO's
    precision at 1; and `SHUFFLE_accuracy`, those that beat this one. A caption is asked in lower
    case, without punctuation, up to 30 words, as are shuffled ones: a model need not see the image
    to know which is a sentence. One that no shuffle changes (a single word) is left out.

    Args:
        shuffles: of `trigrams` (groups of three words change places), `within_trigrams` (the words
            in each do) and `words` (all do; not in ARO).
        seed: of the draws, which also depend on the image's key and the caption.
        retrieval: arguments of `Retrieval`; `k` plays no part.
    """

    def __init__(
        self,
        shuffles: Sequence[str] = ("trigrams", "within_trigrams"),
        seed: int = 0,
        **retrieval,
    ):
        super().__init__(**retrieval)
        if not shuffles or (unknown := sorted(set(shuffles) - set(SHUFFLES))):
            raise ValueError(
                f"shuffles: {unknown[0] if shuffles else 'none'} is not among "
                f"{', '.join(SHUFFLES)}; shuffles of word classes need a tagger: give captions "
                "shuffled elsewhere to CaptionChoice"
            )
        self.shuffles = tuple(dict.fromkeys(shuffles))
        self.seed = seed

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        keys = self.keys(chosen)
        self._questions: list[Question] = []
        self._kinds: list[tuple[str, ...]] = []
        for item, key in zip(chosen.tolist(), keys, strict=True):
            for number, caption in enumerate(self._captions[item]):
                words = words_of(caption)
                wrong = self._wrong(words, key)
                if wrong:
                    name = f"{key}#{number}"
                    texts = tuple(" ".join(each) for each in wrong.values())
                    self._questions.append(Question(name, item, " ".join(words), texts))
                    self._kinds.append(tuple(wrong))
        if not self._questions:
            raise ValueError(
                f"captions: no caption '{self.captions}' of {self.data} has another order by "
                f"{', '.join(self.shuffles)}; trigrams need four words, the others two"
            )
        self._chosen = np.unique([question.item for question in self._questions])
        return self._chosen

    def _wrong(self, words: list[str], key: str) -> dict[str, list[str]]:
        """Returns the caption's words by shuffle, without shuffles that leave it as it is."""
        found = {}
        for name in self.shuffles:
            text = f"{self.seed}/{key}/{name}/{' '.join(words)}"
            digest = hashlib.sha256(text.encode()).digest()
            rng = np.random.default_rng(int.from_bytes(digest[:8], "big"))
            for _ in range(TRIES):
                shuffled = SHUFFLES[name](words, rng)
                if shuffled != words:
                    found[name] = shuffled
                    break
        return found

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        items = set(chosen.tolist())
        asked = [
            (question, kinds)
            for question, kinds in zip(self._questions, self._kinds, strict=True)
            if question.item in items
        ]
        questions = [question for question, _ in asked]
        place = caption_positions(questions)
        text = encoder.texts(list(place))
        image = encoder.images(self.data, [question.item for question in questions])
        values = {"accuracy": _outcomes(choices(image, text, questions, place), questions)}
        for name in self.shuffles:
            rows = [i for i, (_, kinds) in enumerate(asked) if name in kinds]
            if not rows:
                continue
            single = [
                Question(each.key, each.item, each.right, (each.wrong[kinds.index(name)],))
                for each, kinds in (asked[i] for i in rows)
            ]
            values[f"{name}_accuracy"] = _outcomes(
                choices(image[rows], text, single, place), single
            )
        return values


def _outcomes(is_right: np.ndarray, questions: Sequence[Question]) -> Outcomes:
    return Outcomes(float(is_right.mean()), is_right, [question.key for question in questions])


def words_of(caption: str) -> list[str]:
    """Returns a caption's words as ARO asks about them.

    >>> words_of('A dog (small) runs.')
    ['a', 'dog', 'small', 'runs']
    """
    return _PUNCTUATION.sub(" ", caption.lower()).split()[:MAX_WORDS]


def trigrams(words: Sequence[str]) -> list[list[str]]:
    """Cuts words into groups of three; the last one may be shorter."""
    return [list(words[i : i + 3]) for i in range(0, len(words), 3)]


def shuffle_trigrams(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Returns the words with their groups of three in another order."""
    groups = trigrams(words)
    return [word for i in rng.permutation(len(groups)) for word in groups[i]]


def shuffle_within_trigrams(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Returns the words, those of each group of three in another order."""
    return [group[i] for group in trigrams(words) for i in rng.permutation(len(group))]


def shuffle_words(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Returns the words in any order."""
    own = list(words)
    return [own[i] for i in rng.permutation(len(own))]


SHUFFLES: dict[str, Callable[[Sequence[str], np.random.Generator], list[str]]] = {
    "trigrams": shuffle_trigrams,
    "within_trigrams": shuffle_within_trigrams,
    "words": shuffle_words,
}
