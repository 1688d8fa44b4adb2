"""Finds which entries of a list occur in a caption, as MetaCLIP does.

Matching is what takes time, so it is done once: `balance_concepts` reads the numbers found here.
Some 40,000 captions/s a core with 500,000 entries (docs/benchmarks.md).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, texts
from ...entries import Entries, Padding, spaced
from ...numerics.sparse import distinct


@dataclass(frozen=True)
class MatchConcepts(Filter):
    """Writes `concepts`, the numbers of the entries in a caption, and `num_matches`.

    Args:
        entries: a file with one entry a line, JSON with a list of them (such as MetaCLIP's
            `metadata.json`), or parquet with a column `entry` (such as the table of
            `pool_entries`); or such a file for each language by its code, `other` for all the
            rest, and the column `language` says which one is used.
        min_matches: so many entries have to occur.
        padding: `spaces`: an entry stands between spaces (MetaCLIP). `by_script`: but for edges of
            scripts that are written without spaces, such as Chinese and Thai (MetaCLIP 2).
    """

    entries: Path | dict[str, Path]
    min_matches: int = 1
    padding: Padding = "spaces"

    writes = ("keep", "concepts", "num_matches")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The caption, and its language if that decides."""
        return ("caption", "language") if isinstance(self.entries, dict) else ("caption",)

    def files(self) -> Sequence[Path]:
        return list(Entries(self.entries).by_language.values())

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        entries = Entries(self.entries)
        firsts = entries.first_numbers()
        languages: list[str | None] = [None] * rows.num_rows
        if isinstance(self.entries, dict):
            languages = [
                code if code in self.entries else "other" for code in texts(rows, "language")
            ]
        finders = {
            code: found.find_overlapping
            for code in set(languages)
            if (found := entries.matcher(code, self.padding)) is not None
        }
        numbers: list[int] = []
        sizes = np.zeros(rows.num_rows, dtype=np.int64)
        for row, (caption, code) in enumerate(zip(texts(rows, "caption"), languages, strict=True)):
            if code in finders:
                matches = finders[code](spaced(caption))
                sizes[row] = len(matches)
                first = firsts[code]
                numbers += [number + first for _, _, number in matches]
        pairs = np.repeat(np.arange(rows.num_rows), sizes) << 32 | np.array(numbers, dtype=np.int64)
        pairs = distinct(pairs)  # an entry that occurs twice in a caption counts once
        counts = np.bincount(pairs >> 32, minlength=rows.num_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        found = pa.ListArray.from_arrays(offsets, pa.array((pairs & 0xFFFFFFFF).astype(np.int32)))
        keep = counts >= self.min_matches
        return {"keep": keep, "concepts": found, "num_matches": counts.astype(np.int32)}
