"""A cap: at most so many samples with the same value in a column."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded, text_hash
from ...base import Columns, GroupFilter, State


@dataclass(frozen=True)
class Cap(GroupFilter):
    """Keeps at most `at_most` samples of each value, chosen by a hash of the key.

    A value's samples are brought together: about 50 bytes of memory for each one of the most
    frequent value.

    Args:
        column: numbers or texts, of the score table, a store or an earlier filter.
        at_most: samples of each value.
        seed: of the choice.

    Raises:
        ValueError: the cap leaves nothing.
    """

    column: str
    at_most: int
    seed: int = 0

    def __post_init__(self):
        if self.at_most < 1:
            raise ValueError(f"at_most={self.at_most} leaves nothing; give 1 or more")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column."""
        return (self.column,)

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        if pa.types.is_nested(kind := rows.column(self.column).type):
            raise ValueError(f"{self.column} holds {kind}; cap needs one number or text a row")
        values = rows.column(self.column).dictionary_encode()
        codes = [text_hash(value) for value in values.dictionary.to_pylist()]
        return np.array(codes, dtype=np.int64)[values.indices.to_numpy()]

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        key = rows.column("key").to_numpy()
        sizes = np.diff(starts)
        hashed = mix(key, seeded(self.seed, "cap"))
        order = np.lexsort((key, hashed, np.repeat(np.arange(len(sizes)), sizes)))
        keep = np.empty(len(key), dtype=bool)
        keep[order] = np.arange(len(key)) - np.repeat(starts[:-1], sizes) < self.at_most
        return {"keep": keep}
