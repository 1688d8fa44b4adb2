"""Rules about the letters and words of captions: shares, patterns, lists of words.

Gadre et al., "DataComp" (2023), section 4: text-based filtering keeps English captions with a word
that means a class of ImageNet-21k; `words` takes any list, and the filter `language` the rest.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...base import Columns, Filter, State
from ...text_files import read_text

# Words are separated by what is neither a letter, a digit, an apostrophe nor a hyphen.
BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}'’-]+"


@dataclass(frozen=True)
class TextRules(Filter):
    """Keeps captions that break no rule; rules that are not set hold.

    Args:
        min_letters: letters by characters, white space apart, at least.
        max_digits: digits by characters, white space apart, at most.
        max_repeated: the most frequent word by all words, at most; captions of fewer than four
            words are not judged.
        refuse: regular expressions (RE2) of which none may occur, such as `(?i)stock photo`.
        words: a file with a word a line, of which one has to occur, in any case.

    Raises:
        ValueError: a share is not between 0 and 1, or an expression or file cannot be read.
    """

    min_letters: float = 0.0
    max_digits: float = 1.0
    max_repeated: float = 1.0
    refuse: tuple[str, ...] = ()
    words: Path | None = None

    reads = ("caption",)

    def __post_init__(self):
        for name in ("min_letters", "max_digits", "max_repeated"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is no share between 0 and 1")
        for pattern in self.refuse:
            try:
                _count(pa.array([""]), pattern)
            except pa.ArrowInvalid as error:
                raise ValueError(f"refuse: '{pattern}' is no expression of RE2 ({error})") from None

    def files(self) -> Sequence[Path]:
        return [self.words] if self.words is not None else []

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        captions = rows.column("caption")
        keep = np.ones(rows.num_rows, dtype=bool)
        if self.min_letters > 0 or self.max_digits < 1:
            characters = np.maximum(_count(captions, r"[^\s\p{Z}]"), 1)
            keep &= _count(captions, r"\p{L}|\p{M}") >= self.min_letters * characters
            keep &= _count(captions, r"\p{Nd}") <= self.max_digits * characters
        for pattern in self.refuse:
            keep &= _count(captions, pattern) == 0
        if self.max_repeated < 1 or self.words is not None:
            words, row_of = _split(captions)
            if self.max_repeated < 1:
                most, total = _repeats(words, row_of, rows.num_rows)
                keep &= (most <= self.max_repeated * total) | (total < 4)
            if self.words is not None:
                options = pc.SetLookupOptions(_listed(self.words, self.words.stat().st_mtime_ns))
                listed = pc.call_function("is_in", [words], options)
                at = row_of[listed.to_numpy(zero_copy_only=False)]
                keep &= np.bincount(at, minlength=rows.num_rows) > 0
        return {"keep": keep}


def _count(captions: pa.Array, pattern: str) -> np.ndarray:
    """Returns how often a pattern occurs in each caption, int64 [n]."""
    options = pc.MatchSubstringOptions(pattern)
    counts = pc.call_function("count_substring_regex", [captions], options)
    return counts.to_numpy(zero_copy_only=False).astype(np.int64)


def _split(captions: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Returns the words of all captions in lower case, and the row of each."""
    lower = pc.call_function("utf8_lower", [captions])
    options = pc.SplitPatternOptions(BETWEEN_WORDS)
    parts = pc.call_function("split_pattern_regex", [lower], options)
    sizes = parts.value_lengths().to_numpy(zero_copy_only=False)
    words, row_of = parts.flatten(), np.repeat(np.arange(len(captions)), sizes)
    filled = pc.call_function("binary_length", [words]).to_numpy(zero_copy_only=False) > 0
    return words.filter(pa.array(filled)), row_of[filled]


def _repeats(words: pa.Array, row_of: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how often each row has its most frequent word, and how many words it has."""
    codes = words.dictionary_encode().indices.to_numpy().astype(np.int64)
    pairs = np.sort(row_of << 32 | codes)
    firsts = np.flatnonzero(np.diff(pairs, prepend=-1))
    times = np.diff(np.append(firsts, len(pairs)))
    most = np.zeros(num_rows, dtype=np.int64)
    np.maximum.at(most, pairs[firsts] >> 32, times)
    return most, np.bincount(row_of, minlength=num_rows)


@functools.lru_cache(maxsize=4)
def _listed(path: Path, changed: int) -> pa.Array:
    """Returns the words of a file in lower case; `changed` is when it did."""
    lines = read_text(path).lower().splitlines()
    words = [line.strip() for line in lines if line.strip()]
    if not words:
        raise ValueError(f"the file of words '{path}' is empty; write one a line")
    listed = pa.array(words, pa.string())
    _, row_of = _split(listed)
    for word, count in zip(words, np.bincount(row_of, minlength=len(words)), strict=True):
        if count != 1:
            raise ValueError(
                f"the file of words '{path}' has the line '{word}', and captions are looked "
                "through word by word; remove it"
            )
    return listed
