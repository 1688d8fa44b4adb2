"""Keep-lists made with a score table: for other shards, and random ones.

In: a score table, and a list or a number. Out: a keep-list in the table's order. Memory holds the
rows of a shard; what is looked up lies in files, see `keep_list`.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from ...hashing import mix, seeded
from ..table import Table
from .keep_list import KeepList, keys_of, table_rows, with_weights, write_list

BINS = 1 << 16


def locate(path: Path, table: Table, out: Path) -> tuple[int, int]:
    """Writes a list for the shards of a table: the same samples by key, where they are now.

    Returns:
        The samples of the result, and those of the list.

    Raises:
        ValueError: none of the list's samples is in the table.
    """
    keep = KeepList(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".keep-", dir=out.parent) as folder:
        lookup = keep.lookup(Path(folder))

        def found() -> Iterator[pa.RecordBatch]:
            for batch in table_rows(table, []):
                rows = lookup.find(keys_of(batch))
                weights = lookup.weights_at(rows)
                yield with_weights(batch, weights).filter(pa.array(rows >= 0))

        empty = f"none of the samples of '{path}' is in the score table '{table.folder}', by key"
        return write_list(out, found(), keep.weighted, empty), keep.num_rows


def draw(table: Table, samples: int, seed: int, out: Path) -> int:
    """Writes a random list: the samples with the lowest hashes of (key, seed).

    A smaller list of the same seed is part of a larger one, and the samples are the same after
    re-sharding. Samples that cannot be used are never drawn.

    Returns:
        The samples of the result.

    Raises:
        ValueError: the table has fewer usable samples.
    """
    hash_key = seeded(seed, "random")

    def hashes() -> Iterator[tuple[pa.RecordBatch, np.ndarray]]:
        for batch in table_rows(table, ["error"]):
            usable = batch.filter(batch.column("error").is_null())
            yield usable, mix(keys_of(usable), hash_key)

    counts = np.zeros(BINS, dtype=np.int64)
    for _, values in hashes():
        counts += np.bincount((values >> np.uint64(48)).astype(np.int64), minlength=BINS)
    if not 1 <= samples <= counts.sum():
        raise ValueError(f"--samples {samples:,}: the table has {counts.sum():,} usable samples")
    last = int(np.searchsorted(np.cumsum(counts), samples))
    inside = [v[(v >> np.uint64(48)) == np.uint64(last)] for _, v in hashes()]
    at = samples - int(counts[:last].sum()) - 1
    limit = np.sort(np.concatenate(inside))[at]

    def lowest() -> Iterator[pa.RecordBatch]:
        # Two samples with one key have one hash.
        left = samples - int(counts[:last].sum()) - sum(int((v < limit).sum()) for v in inside)
        for batch, values in hashes():
            keep = values < limit
            ties = np.flatnonzero(values == limit)[:left]
            keep[ties] = True
            left -= len(ties)
            yield with_weights(batch, np.ones(len(batch))).filter(pa.array(keep))

    return write_list(out, lowest(), weighted=False)
