"""Scores captions by how rare their words are (WFPP).

Liang and Larson, "Enhancing Vision-Language Model Pre-training with Image-text Pair Pruning Based
on Word Frequency" (2024), and its code: word w, which makes up f(w) of all words, is discarded with
the probability p(w) = 1 - sqrt(t / f(w)); a caption of n words has the score (1 - prod p(w)) / n.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import text_hash
from ....text.tokenize import split_words
from ...base import Columns, Filter, State, texts
from ...numerics.sparse import add_counts, count, look_up


@dataclass(frozen=True)
class WordFrequency(Filter):
    """Writes the score; the filter `threshold` keeps the highest.

    `OUT/tables/` gets p(w) of each word that counts, by a hash of the word.

    Words are those of CLIP's tokenizer (letters, single digits, runs of other signs), lower-cased.
    Counts are held by hashes of the words: 16 bytes for each different one.

    Args:
        t: the frequency up to which no word is discarded.
        min_count: words that come less often count neither in f nor in the score.
        rare: what p(w) is of words with f(w) < t, where the formula is negative. `clamp`: 0, so
            that the caption has the highest score of its length. `neutral`: 1, as in the released
            code, so that such a word changes nothing. `negative`: as the formula has it, which is
            what CLIPF orders words by (`data.text.frequent_words.RareWords`).
        num_words: so many words at the beginning of a caption are scored.
        column: name of the score.

    Raises:
        ValueError: a setting is below 1, or `t` is not between 0 and 1.
    """

    t: float = 1e-7
    min_count: int = 5
    rare: Literal["clamp", "neutral", "negative"] = "clamp"
    num_words: int = 30
    column: str = "wfpp"

    reads = ("caption",)

    def __post_init__(self):
        if not 0 < self.t < 1:
            raise ValueError(f"t={self.t} is not between 0 and 1")
        if self.min_count < 1 or self.num_words < 1:
            raise ValueError(
                f"min_count={self.min_count} and num_words={self.num_words}: give 1 or more"
            )

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The score."""
        return (self.column,)

    def partial(self, rows: pa.RecordBatch) -> State:
        hashes, times, _, _ = _words(texts(rows, "caption"), None)
        order = np.argsort(hashes, kind="stable")
        return count(hashes[order], times[order])

    def merge(self, one: State, other: State) -> State:
        return add_counts(one, other)

    def finish(self, total: State) -> State:
        """Returns the probability of being discarded for each word that is frequent enough."""
        is_counted = total["counts"] >= self.min_count
        words, counts = total["values"][is_counted], total["counts"][is_counted]
        discard = 1 - np.sqrt(self.t * counts.sum() / counts)
        if self.rare != "negative":
            discard[discard < 0] = 0.0 if self.rare == "clamp" else 1.0
        return {"words": words, "discard": discard}

    def table(self, state: State) -> pa.Table:
        return pa.table({"word": state["words"], "masked": state["discard"]})

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        hashes, _, codes, sizes = _words(texts(rows, "caption"), self.num_words)
        discard = look_up(state["words"], state["discard"], hashes, 1.0)[codes]
        score = np.zeros(len(sizes))
        firsts = (np.cumsum(sizes) - sizes)[sizes > 0]
        if len(firsts):
            products = np.multiply.reduceat(discard, firsts)
            score[sizes > 0] = (1 - products) / sizes[sizes > 0]
        return {self.column: score}


def _words(
    captions: Sequence[str], limit: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Splits captions into words.

    Returns:
        Of the different words: their hashes int64 [m], and how often each comes int64 [m]. Of all
        words: the number of each among the different ones int64 [words]. Of the captions: how many
        words each has int64 [n].
    """
    words: list[str] = []
    sizes = np.zeros(len(captions), dtype=np.int64)
    for row, caption in enumerate(captions):
        part = split_words(caption)[:limit]
        sizes[row] = len(part)
        words += part
    encoded = pa.array(words, pa.string()).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    hashes = np.array([text_hash(word) for word in encoded.dictionary.to_pylist()], dtype=np.int64)
    return hashes, np.bincount(codes, minlength=len(hashes)), codes, sizes
