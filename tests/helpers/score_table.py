"""Small score tables and stores, written as the product writes them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from counterpoint.data.curate.table import COLUMNS, Table, file_of, write_about, write_rows
from counterpoint.data.sidecar import write_sidecar


def make_table(
    folder: Path, columns: Mapping[str, Sequence[Any]], shards: Sequence[int], order=None
) -> Table:
    """Writes a table whose shards have so many rows each.

    Args:
        folder: of the table.
        columns: values of all rows; others of `COLUMNS` get harmless ones.
        shards: number of rows of each shard.
        order: which row comes at which place; as they are by default.
    """
    total = sum(shards)
    order = np.arange(total) if order is None else np.asarray(order)
    values = {
        "key": np.arange(total) * 7919 - 10**6,
        "name": [f"s{row}" for row in range(total)],
        "error": [None] * total,
        "caption": [f"caption {row}" for row in range(total)],
        "width": [640] * total,
        "height": [480] * total,
        "num_bytes": [1000] * total,
        "words": [5] * total,
        "characters": [30] * total,
        "image_hash": np.arange(total) + 1,
        "caption_hash": np.arange(total) + 10**6,
        "phash": np.arange(total) * 977,
        **columns,
    }
    values = {name: [column[at] for at in order] for name, column in values.items()}
    listed, first = [], 0
    for number, size in enumerate(shards):
        name, part = f"{number:05d}.tar", slice(first, first + size)
        rows = {each: pa.array(column[part]) for each, column in values.items()}
        rows |= {"source": pa.array(["web"] * size), "shard": pa.array([name] * size)}
        rows["index"] = pa.array(range(size))
        fields = [
            COLUMNS.field(each) if each in COLUMNS.names else pa.field(each, rows[each].type)
            for each in [*COLUMNS.names, *(set(rows) - set(COLUMNS.names))]
        ]
        schema = pa.schema(fields)
        table = pa.table({each: rows[each] for each in schema.names}).cast(schema)
        write_rows(folder / file_of("web", name), table)
        listed.append(("web", name, size))
        first += size
    write_about(folder, listed, {})
    return Table(folder)


def make_store(folder: Path, table: Table, columns: Mapping[int, Mapping[str, np.ndarray]]) -> Path:
    """Writes a sidecar with a row for each key that `columns` has, in the shards of the table."""
    import pyarrow.parquet as pq

    for path, (source, shard, _) in zip(table.files, table.shards, strict=True):
        keys = [key for key in pq.read_table(path)["key"].to_pylist() if key in columns]
        if keys:
            names = columns[keys[0]].keys()
            rows = {n: torch.from_numpy(np.stack([columns[k][n] for k in keys])) for n in names}
            write_sidecar(folder, source, shard, {"key": torch.tensor(keys), **rows})
    return folder


def kept(out: Path) -> dict[int, float]:
    """Returns the keys of a keep-list with their weights (1 without)."""
    import pyarrow.parquet as pq

    rows = pq.read_table(out / "keep.parquet").to_pydict()
    return dict(zip(rows["key"], rows.get("weight", [1.0] * len(rows["key"])), strict=True))
