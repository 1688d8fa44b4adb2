"""Classes as sets of words, to be found in captions.

In: a file of classes. Out: which of them a caption speaks of. Wen et al., "What Makes CLIP More
Robust to Long-Tailed Pre-Training Data?" (2024), and its code: words are lower-cased and
lemmatised; a class occurs in a caption if all words of one of its names do, in any order, and none
of the words that give another meaning ("crane" beside "bird" is no machine).
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .numerics.sparse import distinct
from .text_files import read_text

WORD = re.compile(r"[^\W\d_]+")
IN_BRACKETS = re.compile(r"\([^)]*\)")
BETWEEN_NAMES = re.compile(r" or | / ")
MAX_CACHED_WORDS = 1 << 18


@dataclass(frozen=True)
class Concepts:
    """Classes with the lemmas of their names, as lists from lemmas to names.

    Attributes:
        classes: their names, as the file has them.
        language: code of the lemmatiser.
        lemmas: number of each lemma.
        names_of: names in which a lemma occurs, as (starts int64 [lemmas + 1], names int64).
        sizes: different lemmas of each name, int64 [names].
        class_of: class of each name, int64 [names].
        refused_by: classes that a lemma rules out, in the same form as `names_of`.
    """

    classes: list[str]
    language: str
    lemmas: dict[str, int]
    names_of: tuple[np.ndarray, np.ndarray]
    sizes: np.ndarray
    class_of: np.ndarray
    refused_by: tuple[np.ndarray, np.ndarray]

    def find(self, captions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns (caption, class) pairs, int64 [m] each, sorted."""
        words: list[str] = []
        sizes = np.zeros(len(captions), dtype=np.int64)
        for row, caption in enumerate(captions):
            part = WORD.findall(caption.lower())
            sizes[row] = len(part)
            words += part
        encoded = pa.array(words, pa.string()).dictionary_encode()
        lemmas = [lemma(word, self.language) for word in encoded.dictionary.to_pylist()]
        numbers = np.array([self.lemmas.get(each, -1) for each in lemmas], dtype=np.int64)
        numbers = numbers[encoded.indices.to_numpy()] if len(words) else numbers
        rows = np.repeat(np.arange(len(captions)), sizes)[numbers >= 0]
        pairs = distinct(rows << 32 | numbers[numbers >= 0])
        names, present = np.unique(_spread(pairs, self.names_of), return_counts=True)
        whole = names[present == self.sizes[names & 0xFFFFFFFF]]
        found = distinct(whole >> 32 << 32 | self.class_of[whole & 0xFFFFFFFF])
        found = np.setdiff1d(found, _spread(pairs, self.refused_by))
        return found >> 32, found & 0xFFFFFFFF


def _spread(pairs: np.ndarray, lists: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Replaces the lemma of each (row, lemma) by all that belongs to it, as (row, number)."""
    starts, numbers = lists
    lemmas = pairs & 0xFFFFFFFF
    sizes = starts[lemmas + 1] - starts[lemmas]
    at = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(pairs >> 32 << 32, sizes) | numbers[np.repeat(starts[lemmas], sizes) + at]


@functools.lru_cache(maxsize=4)
def read_concepts(path: Path, changed: int, language: str) -> Concepts:
    """Reads a file of classes; `changed` is when it did.

    Text with a class a line; or JSON, a list of classes, or a mapping from the class to its names
    (one, or a list), or to `{"names": [...], "without": [...]}`. A name that is not in a list is
    cut at " or " and " / "; what stands in brackets is left out. A class that comes twice
    is one.

    Raises:
        ValueError: it is none of these, or a class has no word.
    """
    content = _content(path)
    lemmas: dict[str, int] = {}
    names: list[list[int]] = []
    class_of: list[int] = []
    refused: list[tuple[int, int]] = []

    def numbers(text: str) -> list[int]:
        words = {lemma(word, language) for word in WORD.findall(text.lower())}
        return [lemmas.setdefault(word, len(lemmas)) for word in sorted(words)]

    for number, (name, entry) in enumerate(content.items()):
        for text in _names(entry):
            if part := numbers(IN_BRACKETS.sub("", text)):
                names.append(part)
                class_of.append(number)
        if not class_of or class_of[-1] != number:
            raise ValueError(f"the class '{name}' of '{path}' has no word to be found by")
        for text in entry.get("without", []) if isinstance(entry, dict) else []:
            refused += [(word, number) for word in numbers(text)]
    pairs = [(word, name) for name, part in enumerate(names) for word in part]
    return Concepts(
        list(content),
        language,
        lemmas,
        _lists(pairs, len(lemmas)),
        np.array([len(part) for part in names], dtype=np.int64),
        np.array(class_of, dtype=np.int64),
        _lists(refused, len(lemmas)),
    )


def _content(path: Path) -> dict[str, Any]:
    """Returns the classes of a file with what it says of each."""
    text = read_text(path)
    if path.suffix != ".json":
        return {line.strip(): line.strip() for line in text.splitlines() if line.strip()}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the file of classes '{path}' is no JSON ({error})") from error
    if isinstance(content, list):
        content = {str(name): str(name) for name in content}
    if not isinstance(content, dict) or not content:
        raise ValueError(
            f"the file of classes '{path}' holds neither a list of classes nor a mapping from "
            "classes to names"
        )
    return content


def _names(entry: Any) -> list[str]:
    """Returns the names of a class."""
    if isinstance(entry, dict):
        entry = entry.get("names", [])
    if isinstance(entry, str):
        return BETWEEN_NAMES.split(IN_BRACKETS.sub("", entry))
    if not isinstance(entry, list):
        raise ValueError(f"a class has the names {entry}; give a text or a list of texts")
    return [str(name) for name in entry]


def _lists(pairs: Iterable[tuple[int, int]], num_lemmas: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the second numbers by the first, as starts and numbers."""
    array = np.array(sorted(set(pairs)), dtype=np.int64).reshape(-1, 2)
    return np.searchsorted(array[:, 0], np.arange(num_lemmas + 1)), array[:, 1]


@functools.lru_cache(maxsize=MAX_CACHED_WORDS)
def lemma(word: str, language: str) -> str:
    """Returns the dictionary form of a word ("mice": "mouse", "ran": "run").

    Raises:
        ValueError: simplemma is not installed.
    """
    try:
        import simplemma
    except ImportError as error:
        raise ValueError(
            "words are lemmatised by simplemma; install it: pip install 'counterpoint[curate]'"
        ) from error
    return simplemma.lemmatize(word, language).lower()
