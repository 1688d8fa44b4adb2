"""Captions that are little more than names.

Bianchi et al., "Contrastive Language-Image Pre-training for the Italian Language" (2021), leave out
captions of which 80% or more are proper nouns ("Anna Maria Mozzoni"): nothing can be learned from
them about what an image shows. They use a tagger; here a capital letter stands for it.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...base import Columns, Filter, State
from .text_rules import BETWEEN_WORDS


@dataclass(frozen=True)
class ProperNouns(Filter):
    """Leaves out captions in which most words after the first begin with a capital letter.

    The first word has one in any sentence and is not counted; a caption of one word stays. Not for
    German, where all nouns have one, nor for captions in titles' or in capital letters. A word
    without letters (a number) counts as another word. Scripts without capital letters lose nothing.

    Args:
        max_share: captions with this share of such words, or more, are left out.

    Raises:
        ValueError: `max_share` is not above 0, or above 1.
    """

    max_share: float = 0.8

    reads = ("caption",)

    def __post_init__(self):
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share={self.max_share} is no share above 0 and up to 1")

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        options = pc.SplitPatternOptions(BETWEEN_WORDS)
        parts = pc.call_function("split_pattern_regex", [rows.column("caption")], options)
        sizes = parts.value_lengths().to_numpy(zero_copy_only=False)
        words, row_of = parts.flatten(), np.repeat(np.arange(rows.num_rows), sizes)
        filled = pc.call_function("binary_length", [words]).to_numpy(zero_copy_only=False) > 0
        row_of = row_of[filled]
        is_later = np.diff(row_of, prepend=-1) == 0
        capital = pc.MatchSubstringOptions(r"^\p{Lu}")
        is_name = pc.call_function(
            "match_substring_regex", [words.filter(pa.array(filled))], capital
        ).to_numpy(zero_copy_only=False)
        names = np.bincount(row_of[is_later & is_name], minlength=rows.num_rows)
        later = np.bincount(row_of[is_later], minlength=rows.num_rows)
        return {"keep": (names < self.max_share * later) | (later == 0)}
