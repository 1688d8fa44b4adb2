"""Counts which classes of an evaluation captions speak of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, texts
from ...concepts import Concepts, read_concepts


@dataclass(frozen=True)
class ConceptCounts(Filter):
    """Writes `classes`, the numbers of the classes in a caption, and `num_concepts`.

    `OUT/tables/` gets class and count, with which the task `FrequencyCorrelation` measures how far
    accuracy follows frequency (Wen et al. 2024).

    Args:
        classes: a file of classes: text with one a line, or JSON with their names and the words
            that give another meaning (data/curate/concepts.py).
        language: of the names and captions, for the lemmatiser.

    Raises:
        ValueError: the file cannot be read.
    """

    classes: Path
    language: str = "en"

    reads = ("caption",)
    writes = ("classes", "num_concepts")

    def files(self) -> Sequence[Path]:
        return [self.classes]

    def partial(self, rows: pa.RecordBatch) -> State:
        concepts = self._concepts()
        _, found = concepts.find(texts(rows, "caption"))
        return {"counts": np.bincount(found, minlength=len(concepts.classes))}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        at, found = self._concepts().find(texts(rows, "caption"))
        counts = np.bincount(at, minlength=rows.num_rows).astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        classes = pa.ListArray.from_arrays(pa.array(offsets), pa.array(found.astype(np.int32)))
        return {"classes": classes, "num_concepts": counts}

    def table(self, state: State) -> pa.Table:
        return pa.table({"class": self._concepts().classes, "count": state["counts"]})

    def _concepts(self) -> Concepts:
        try:
            changed = self.classes.stat().st_mtime_ns
        except OSError as error:
            raise ValueError(
                f"the file of classes '{self.classes}' cannot be read ({error.strerror})"
            ) from error
        return read_concepts(self.classes, changed, self.language)
