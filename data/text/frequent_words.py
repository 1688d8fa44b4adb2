"""Captions without their most frequent words (CLIPF).

In: the caption that another policy chooses, the sample's uniform number, and a table of how likely
words are left out. Out: a caption of so many words, in their order. The same (seed, epoch, key)
gives the same words.
"""

import functools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..hashing import mix, seeded, text_hash
from ..shards.reader import RawSample
from .captions import CaptionPolicy, FirstFound
from .tokenize import split_words


class RareWords(CaptionPolicy):
    """Keeps words of a long caption at random, the rarer the likelier; a short one stays.

    Liang and Larson, "Frequency Is What You Need: Considering Word Frequency When Text Masking
    Benefits Vision-Language Model Pre-training" (2025), and `frequency_mask_tokenize` of
    MingliangLiang3/CLIPF: a word w of frequency f(w) has P(w) = 1 - sqrt(t / f(w)), of a caption
    those `num_words` stay whose u - P(w) is largest, u uniform in [0, 1). Words that are not in the
    table have P = 1, as those that come less often than five times have there.

    Args:
        table: P by word: `OUT/tables/score.parquet` of `counterpoint curate clipf`.
        num_words: words of the longest caption; as many as tokens without start and end.
        of: the policy whose caption is shortened; the first field found by default.

    Raises:
        ValueError: `num_words` is below 1; when a caption is read, that there is no such table.
    """

    def __init__(self, table: str, num_words: int, of: CaptionPolicy | None = None):
        if num_words < 1:
            raise ValueError(f"RareWords has num_words={num_words}: give 1 or more")
        self.table = str(table)
        self.num_words = num_words
        self.of = of or FirstFound()
        self.fields = self.of.fields

    def __call__(self, sample: RawSample, draw: float) -> str:
        # Read before a caption needs it, so that the checks at the start find out.
        known, masked = read_table(self.table)
        caption = self.of(sample, draw)
        words = split_words(caption)
        if len(words) <= self.num_words:
            return caption
        hashes = np.array([text_hash(word) for word in words], dtype=np.int64)
        at = np.searchsorted(known, hashes).clip(max=len(known) - 1)
        chance = np.where(known[at] == hashes, masked[at], 1.0)
        # The choice of `of` depends on `draw` itself: the words need other numbers.
        bits = mix(np.arange(len(words)), seeded("rare words", draw)) >> np.uint64(11)
        best = np.argsort(chance - bits * 2.0**-53, kind="stable")[: self.num_words]
        return " ".join(words[i] for i in np.sort(best))


@functools.lru_cache(maxsize=4)
def read_table(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns hashes of words, int64 [m], ascending, and how likely each is masked, [m].

    Raises:
        ValueError: the file cannot be read, has no such columns, or no words.
    """
    make = "`counterpoint curate clipf --table TABLE --out OUT` makes it, below OUT/tables/"
    try:
        table = pq.read_table(Path(path), columns=["word", "masked"])
    except OSError as error:
        raise ValueError(f"the table of words '{path}' cannot be read ({error}); {make}") from error
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"'{path}' is no table of words ({error}); {make}") from error
    if not len(table):
        raise ValueError(
            f"the table of words '{path}' is empty: in a small pool no word comes five times; "
            "set min_count: 1 in its curation"
        )
    return table["word"].to_numpy(), table["masked"].to_numpy()
