"""Brings the rows of a group together and their results back, through files.

In: blocks of shards. Out: the columns of a `GroupFilter` for every row. Blocks write their rows by
bucket, a bucket is worked on as a whole and writes its results by block, and blocks collect them:
a task needs memory for its block or bucket, every file is whole or absent, and what is there is not
made again. The rows of a part of the filter are removed before the next part writes its own.
"""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..files import whole_file
from ..hashing import mix, seeded
from .base import KEEP, GroupFilter, checked
from .rows import Rows
from .state import state_of

BUCKET_BYTES = 1 << 28
BUCKET_KEY = seeded("bucket")
# A file without rows; an empty one is what a loss of power leaves, and is none.
NO_ROWS = b"no rows\n"


@dataclass(frozen=True)
class Shuffle:
    """The three passes of one filter, the first two for each of its parts.

    Args:
        parts: what works on the groups (`GroupFilter.parts`).
        rows: the pool.
        blocks: numbers of the shards of each block.
        folder: of the filter.
        buckets: how many; the result is the same for any number.
    """

    parts: Sequence[GroupFilter]
    rows: Rows
    blocks: Sequence[Sequence[int]]
    folder: Path
    buckets: int

    def is_worked(self, part: int) -> bool:
        """Returns whether all buckets of a part are done; its rows are not needed any more."""
        return all(self._worked(part, bucket).exists() for bucket in range(self.buckets))

    def forget(self, part: int) -> None:
        """Removes the rows of a part."""
        shutil.rmtree(self._folder("scatter", part), ignore_errors=True)

    def scatter(self, part: int, block: int) -> None:
        """Writes the rows of a block, one record batch a bucket."""
        target = self._folder("scatter", part) / f"{block:06d}.arrow"
        if target.exists():
            return
        filter = self.parts[part]
        parts = []
        for shard in self.blocks[block]:
            for numbers, rows in self.rows.batches(shard, filter.reads):
                groups = np.asarray(filter.groups(rows, state_of(self.folder)), dtype=np.int64)
                copies = 1 if groups.ndim == 1 else groups.shape[1]
                at = np.repeat(np.arange(len(numbers)), copies)
                taken = rows.take(pa.array(at))
                taken = taken.append_column("_group", pa.array(groups.reshape(-1)))
                places = np.int64(shard) << 32 | numbers[at]
                parts.append(taken.append_column("_row", pa.array(places)))
        joined = _joined(parts).combine_chunks() if parts else None
        buckets = np.zeros(0, dtype=np.int64)
        if joined is not None:
            buckets = mix(joined["_group"].to_numpy(), BUCKET_KEY) % np.uint64(self.buckets)
        _write_parts(target, joined, buckets.astype(np.int64), self.buckets)

    def work(self, part: int, bucket: int) -> None:
        """Applies a part to the groups of a bucket; writes one record batch a block."""
        target = self._worked(part, bucket)
        if target.exists():
            return
        filter = self.parts[part]
        parts = _read_parts(self._folder("scatter", part), len(self.blocks), bucket)
        joined, out, blocks = None, None, np.zeros(0, dtype=np.int64)
        if parts:
            joined = _joined(parts)
            groups, keys = joined["_group"].to_numpy(), joined["key"].to_numpy()
            order = np.lexsort((joined["_row"].to_numpy(), keys, groups))
            joined = joined.take(pa.array(order)).combine_chunks()
            groups, places = joined["_group"].to_numpy(), joined["_row"].to_numpy()
            starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
            (batch,) = joined.drop_columns(["_group", "_row"]).to_batches()
            starts = np.append(starts, len(groups))
            given = filter.apply_groups(batch, starts, state_of(self.folder))
            out = pa.table({"_row": places, **checked(filter, given, len(places))})
            block_of = np.empty(len(self.rows.table.shards), dtype=np.int64)
            for number, shards in enumerate(self.blocks):
                block_of[list(shards)] = number
            blocks = block_of[places >> 32]
        _write_parts(target, out, blocks, len(self.blocks))

    def gather(self, block: int) -> None:
        """Writes the filter's files of a block's shards."""
        shards = self.blocks[block]
        missing = [s for s in shards if not (self.folder / self.rows.file(s)).exists()]
        if not missing:
            return
        writes = self.parts[0].writes
        parts = []
        for part in range(len(self.parts)):
            parts += _read_parts(self._folder("gather", part), self.buckets, block)
        if not parts:
            none = {name: np.zeros(0) for name in writes}
            for shard in missing:
                self.rows.write(self.folder, shard, np.zeros(0, np.int64), none, writes)
            return
        joined = _joined(parts)
        joined = joined.take(pa.array(np.argsort(joined["_row"].to_numpy(), kind="stable")))
        joined = joined.combine_chunks()
        places = joined["_row"].to_numpy()
        firsts = np.flatnonzero(np.diff(places, prepend=-1))
        columns = {name: joined[name].combine_chunks() for name in writes}
        if len(firsts) < len(places):
            assert set(columns) == {KEEP}, "several groups of a row can only keep it or not"
            keep = columns[KEEP].to_numpy(zero_copy_only=False)
            columns[KEEP] = pa.array(np.logical_and.reduceat(keep, firsts))
            places = places[firsts]
        for shard in missing:
            first, last = np.searchsorted(places, [shard << 32, (shard + 1) << 32])
            own = {name: column.slice(first, last - first) for name, column in columns.items()}
            numbers = places[first:last] & 0xFFFFFFFF
            self.rows.write(self.folder, shard, numbers, own, writes)

    def _folder(self, name: str, part: int) -> Path:
        return self.folder / name / f"{part}"

    def _worked(self, part: int, bucket: int) -> Path:
        return self._folder("gather", part) / f"{bucket:06d}.arrow"


def _joined(parts: Sequence[pa.RecordBatch]) -> pa.Table:
    """Returns rows of several shards as one table."""
    first = parts[0].schema
    for each in parts:
        for field in each.schema:
            if field.type != (other := first.field(field.name).type):
                raise ValueError(
                    f"{field.name} is of {other} in some shards and of {field.type} in others; "
                    "make the store, or what gives the column, again for all of them"
                )
    return pa.Table.from_batches(parts)


def _write_parts(path: Path, rows: pa.Table | None, parts: np.ndarray, num_parts: int) -> None:
    """Writes rows as one record batch a part; `parts` int64 [rows], 0..num_parts-1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if rows is None:
        with whole_file(path) as part:
            part.write_bytes(NO_ROWS)
        return
    order = np.argsort(parts, kind="stable")
    (batch,) = rows.take(pa.array(order)).combine_chunks().to_batches()
    ends = np.searchsorted(parts[order], np.arange(num_parts + 1)).tolist()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with whole_file(path) as part, pa.ipc.new_file(part, rows.schema, options=options) as file:
        for first, last in itertools.pairwise(ends):
            file.write_batch(batch.slice(first, last - first))


def _read_parts(folder: Path, num_files: int, part: int) -> list[pa.RecordBatch]:
    """Returns a part of every file of a folder that has rows in it."""
    found = []
    for number in range(num_files):
        path = folder / f"{number:06d}.arrow"
        if path.stat().st_size != len(NO_ROWS):
            try:
                with pa.memory_map(str(path)) as source:
                    batch = pa.ipc.open_file(source).get_batch(part)
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(
                    f"{path} is damaged ({error}); remove {folder.parents[1]} and start again"
                ) from error
            if batch.num_rows:
                found.append(batch)
    return found
