"""What a filter sees of a shard: its columns, joined from the table, stores and earlier filters.

In: the number of a shard. Out: record batches of the rows that are still kept and have all that the
filter reads, and which rows of the shard they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from .base import KEEP, MAX_WEIGHT, WEIGHT, Columns
from .stores import Store
from .table import Table, file_of, read_rows, write_rows

ROWS_A_BATCH = 1 << 16

# What a filter made of a row (column `verdict` of its file).
KEPT, LEFT_OUT, LACKS, OUT_BEFORE = 0, 1, 2, 3


@dataclass(frozen=True)
class Rows:
    """The rows of a pool under the filters before one.

    Args:
        table: the score table.
        stores: by name; a column STORE.COLUMN is joined from them.
        earlier: folders of the filters before this one, in order.
        given: the column of each earlier filter by name, as the number of its folder.
    """

    table: Table
    stores: Mapping[str, Store] = field(default_factory=dict)
    earlier: tuple[Path, ...] = ()
    given: Mapping[str, int] = field(default_factory=dict)

    def batches(
        self, shard: int, reads: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, pa.RecordBatch]]:
        """Yields rows of a shard: their numbers in it, int64 [n], and `key` and `reads`."""
        alive = self.verdicts(shard) == KEPT
        if not self.earlier:
            errors = self._column(shard, "error")
            alive &= errors.is_null().to_numpy()
        names = list(dict.fromkeys(["key", *reads]))
        columns = {name: self._column(shard, name) for name in names if "." not in name}
        for first in range(0, len(alive), ROWS_A_BATCH):
            numbers = first + np.flatnonzero(alive[first : first + ROWS_A_BATCH])
            if not len(numbers):
                continue
            part = {
                name: _plain(column.take(pa.array(numbers))) for name, column in columns.items()
            }
            part |= self._joined(shard, part["key"].to_numpy(), names)
            rows = pa.RecordBatch.from_pydict({name: part[name] for name in names})
            whole = np.ones(len(numbers), dtype=bool)
            for column in rows.columns:
                if column.null_count:
                    whole &= column.is_valid().to_numpy(zero_copy_only=False)
            if whole.any():
                yield numbers[whole], rows.filter(pa.array(whole))

    def verdicts(self, shard: int) -> np.ndarray:
        """Returns what the earlier filters made of a shard's rows, int8 [rows]."""
        if not self.earlier:
            return np.zeros(self.table.shards[shard][2], dtype=np.int8)
        verdict = self._written(shard, -1, "verdict")["verdict"].to_numpy()
        return np.where(verdict == KEPT, KEPT, OUT_BEFORE).astype(np.int8)

    def weights(self, shard: int) -> np.ndarray:
        """Returns the product of the weights of the earlier filters, float64 [rows]."""
        if WEIGHT not in self.given:
            return np.ones(self.table.shards[shard][2])
        written = self._written(shard, self.given[WEIGHT], WEIGHT)
        return written[WEIGHT].fill_null(0.0).to_numpy()

    def write(
        self, folder: Path, shard: int, numbers: np.ndarray, columns: Columns, writes: Sequence[str]
    ) -> None:
        """Writes the file of a shard in a filter's folder, with a row for each row of the shard.

        Args:
            folder: of the filter.
            shard: number of the shard.
            numbers: rows that the filter has seen, int64 [n].
            columns: what it gave for them, one value each.
            writes: names of the columns.

        Raises:
            ValueError: the product of weights is too large.
        """
        verdict = self.verdicts(shard)
        verdict[verdict == KEPT] = LACKS
        keep = np.ones(len(numbers), dtype=bool)
        if KEEP in writes:
            keep &= np.asarray(columns[KEEP]) > 0
        given = {name: columns[name] for name in writes if name != KEEP}
        if WEIGHT in writes:
            earlier = self.weights(shard)[numbers]
            weights = np.asarray(columns[WEIGHT], dtype=np.float64) * earlier
            if weights.max(initial=0) > MAX_WEIGHT:
                raise ValueError(
                    f"the weights of the filters multiply to {weights.max():g} in the shard "
                    f"{self.file(shard)}, more than float32 holds; give smaller ones"
                )
            # As keep-lists have them: what rounds to 0 there is left out.
            keep &= weights.astype(np.float32) > 0
            given[WEIGHT] = weights
        verdict[numbers] = np.where(keep, KEPT, LEFT_OUT)
        at = np.full(len(verdict), -1)
        at[numbers] = np.arange(len(numbers))
        index = pa.array(at, mask=at < 0)
        out = {"verdict": pa.array(verdict)}
        for name, values in given.items():
            out[name] = (values if isinstance(values, pa.Array) else pa.array(values)).take(index)
        write_rows(folder / self.file(shard), pa.table(out))

    def file(self, shard: int) -> Path:
        """Returns where the rows of a shard lie below a folder."""
        source, name, _ = self.table.shards[shard]
        return file_of(source, name)

    def _written(self, shard: int, step: int, column: str) -> pa.Table:
        """Returns a column that an earlier filter wrote."""
        folder = self.earlier[step]
        return read_rows(folder / self.file(shard), [column], remove=folder)

    def _column(self, shard: int, name: str) -> pa.ChunkedArray:
        if (given := self.given.get(name)) is not None:
            return self._written(shard, given, name)[name]
        return read_rows(self.table.folder / self.file(shard), [name])[name]

    def _joined(self, shard: int, keys: np.ndarray, names: Sequence[str]) -> dict[str, pa.Array]:
        """Returns the columns that come from stores.

        Raises:
            ValueError: a store has none of the samples.
        """
        source, _, _ = self.table.shards[shard]
        stem = self.file(shard).stem
        joined: dict[str, pa.Array] = {}
        for name, store in self.stores.items():
            own = [each for each in names if each.startswith(f"{name}.")]
            if own:
                columns = [each.removeprefix(f"{name}.") for each in own]
                arrays = store.read(source, stem, keys, columns)
                # Some samples may have no row; a whole shard is one that was not written.
                if all(array.null_count == len(keys) for array in arrays) and not any(
                    array.null_count < len(array)
                    for array in store.read(source, stem, self._keys(shard), columns)
                ):
                    raise ValueError(
                        f"the store '{name}' ({store.folder}) has none of the {len(keys):,} "
                        f"samples of {self.file(shard)}: start the command that writes it again "
                        "until it is complete, or give the store of this pool and these key fields"
                    )
                joined |= zip(own, arrays, strict=True)
        return joined

    def _keys(self, shard: int) -> np.ndarray:
        """Returns the keys of a shard's samples, int64 [n], left out or not."""
        return self._column(shard, "key").drop_null().to_numpy()


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array, texts as texts."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks()
