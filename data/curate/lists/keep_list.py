"""Keep-lists as sets of keys: read in batches, looked up by key, written in batches.

In: parquet files with `source`, `shard`, `index`, `key` and perhaps `weight`, as `counterpoint
curate` writes them. Out: rows and weights. Memory holds a batch; what is looked up lies in files
beside the result (24 bytes a row, 32 with weights), which are removed afterwards.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ...files import whole_file
from ...hashing import mix, text_hash
from ...order.keep_files import refuse_score_table
from ..key_index import KeyIndex, open_index
from ..table import Table, read_rows

# Its functions are made at import, where no type checker sees them.
pc: Any = pyarrow.compute

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("shard", pa.string()),
        ("index", pa.int32()),
        ("key", pa.int64()),
    ]
)
WEIGHTED = SCHEMA.append(pa.field("weight", pa.float32()))
ROWS_A_BATCH = 1 << 18


class KeepList:
    """A keep-list of `counterpoint curate`.

    Args:
        path: the file, or a folder with `keep.parquet`.

    Attributes:
        weighted: whether it has weights.
        num_rows: its samples.

    Raises:
        ValueError: it is none, or has no keys.
    """

    def __init__(self, path: Path):
        self.path = path / "keep.parquet" if path.is_dir() else path
        try:
            self._file = pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"'{self.path}' is no keep-list; give one that counterpoint curate or keep wrote"
            ) from error
        names = self._file.schema_arrow.names
        if missing := [name for name in SCHEMA.names if name not in names]:
            raise ValueError(
                f"the keep-list '{self.path}' has no column {', '.join(missing)}; samples are told "
                "apart by what counterpoint curate and keep write"
            )
        refuse_score_table(self.path, names)
        self.weighted = "weight" in names
        self.num_rows = self._file.metadata.num_rows

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yields its rows in their order, in the columns of `WEIGHTED`; a missing weight is 1."""
        columns = WEIGHTED.names if self.weighted else SCHEMA.names
        for batch in self._file.iter_batches(ROWS_A_BATCH, columns=columns):
            if any(column.null_count for column in batch.columns):
                raise ValueError(f"the keep-list '{self.path}' has empty cells; drop these rows")
            if not self.weighted:
                ones = pa.array(np.ones(len(batch), dtype=np.float32))
                batch = batch.append_column("weight", ones)
            batch = batch.select(WEIGHTED.names).cast(WEIGHTED)
            weights = weights_of(batch)
            wrong = weights[~((weights >= 0) & np.isfinite(weights))]
            if len(wrong):
                raise ValueError(
                    f"the keep-list '{self.path}' has the weight {wrong[0]:g}; weights are numbers "
                    "from 0 up: mend or drop these rows"
                )
            yield batch

    def lookup(self, folder: Path) -> "Lookup":
        """Returns what finds its rows by key.

        Args:
            folder: an empty folder for files.
        """
        groups = range(self._file.num_row_groups)
        counts = [self._file.metadata.row_group(group).num_rows for group in groups]

        def keys_of(group: int) -> np.ndarray:
            return self._file.read_row_group(group, columns=["key"])["key"].to_numpy()

        index = open_index(folder / "index", keys_of, counts)
        spots = np.lib.format.open_memmap(
            folder / "spots.npy", mode="w+", dtype=np.int64, shape=(self.num_rows,)
        )
        weights = None
        if self.weighted:
            weights = np.lib.format.open_memmap(
                folder / "weights.npy", mode="w+", dtype=np.float64, shape=(self.num_rows,)
            )
        first = 0
        for batch in self.batches():
            rows = slice(first, first + len(batch))
            spots[rows] = spots_of(batch)
            if weights is not None:
                weights[rows] = weights_of(batch)
            first += len(batch)
        return Lookup(index, np.concatenate([[0], np.cumsum(counts)]), spots, weights)


@dataclass(frozen=True)
class Lookup:
    """The rows of a keep-list by key; of two with one key, the first counts.

    Args:
        index: of the keys, by row group and row in it.
        starts: the first row of each row group, int64 [groups + 1].
        spots: see `spots_of`, int64 [rows].
        weights: float64 [rows]; None: all 1.
    """

    index: KeyIndex
    starts: np.ndarray
    spots: np.ndarray
    weights: np.ndarray | None

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the row of each key, int64 [n], -1 where there is none."""
        places = self.index.find(keys)
        rows = self.starts[(places >> 32).clip(min=0)] + (places & 0xFFFFFFFF)
        return np.where(places < 0, -1, rows)

    def weights_at(self, rows: np.ndarray) -> np.ndarray:
        """Returns weights, float64 [n]; 0 for the row -1."""
        weights = np.ones(len(rows)) if self.weights is None else self.weights[rows.clip(min=0)]
        return np.where(rows < 0, 0.0, weights)


def spots_of(batch: pa.RecordBatch) -> np.ndarray:
    """Returns a hash of shard and index, int64 [n]: where a sample lies."""
    shards = batch.column("shard").dictionary_encode()
    names = np.array([text_hash(name) for name in shards.dictionary.to_pylist()], dtype=np.int64)
    keys = names.view(np.uint64)[shards.indices.to_numpy()]
    return mix(batch.column("index").to_numpy(), keys).view(np.int64)


def keys_of(batch: pa.RecordBatch) -> np.ndarray:
    """Returns the keys, int64 [n]."""
    return batch.column("key").to_numpy()


def weights_of(batch: pa.RecordBatch) -> np.ndarray:
    """Returns the weights, float64 [n]."""
    return batch.column("weight").to_numpy().astype(np.float64)


def write_list(
    path: Path,
    batches: Iterator[pa.RecordBatch],
    weighted: bool,
    empty: str = "no sample is left",
) -> int:
    """Writes rows in the columns of `WEIGHTED` as a keep-list, whole or not at all.

    Args:
        path: the list.
        batches: its rows.
        weighted: whether it gets their weights.
        empty: what the message says if there are none.

    Returns:
        The number of rows.

    Raises:
        ValueError: there are none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    schema, num_rows = WEIGHTED if weighted else SCHEMA, 0
    with whole_file(path) as part:
        with pq.ParquetWriter(part, schema, compression="zstd") as file:
            for batch in batches:
                if len(batch):
                    file.write_batch(batch.select(schema.names))
                    num_rows += len(batch)
        if not num_rows:
            raise ValueError(f"{empty}; '{path}' is not written")
    return num_rows


def table_rows(table: Table, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a score table by shard: `source`, `shard`, `index`, `key` and others.

    Raises:
        ValueError: the table has no such column.
    """
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(
            f"the score table '{table.folder}' has no column {', '.join(missing)}; counterpoint "
            "score --field json:NAME makes columns of fields"
        )
    for path in table.files:
        rows = read_rows(path, [*SCHEMA.names, *columns])
        rows = rows.cast(pa.schema([*SCHEMA, *(rows.schema.field(name) for name in columns)]))
        yield from rows.filter(pc.is_valid(rows["key"])).combine_chunks().to_batches()


def with_weights(batch: pa.RecordBatch, weights: np.ndarray) -> pa.RecordBatch:
    """Returns rows in the columns of `WEIGHTED`, with weights [n]."""
    arrays = [*(batch.column(name) for name in SCHEMA.names), pa.array(weights, pa.float32())]
    return pa.RecordBatch.from_arrays(arrays, schema=WEIGHTED)
