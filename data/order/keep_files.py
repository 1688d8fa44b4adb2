"""The files of keep-lists, and what is wrong with those that are none.

In: a path. Out: an open parquet file with the columns `shard` and `index`, and perhaps `weight`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def refuse_score_table(path: Path, columns: Sequence[str]) -> None:
    """Raises a ValueError if a file is a shard of a score table, which also names samples."""
    table = path.resolve().parent.parent
    if "error" in columns and (table / "table.json").is_file():
        raise ValueError(
            f"'{path}' is a shard of the score table '{table}' and no keep-list; give one that "
            "counterpoint curate or keep wrote"
        )


def open_list(path: Path, **options: Any) -> pq.ParquetFile:
    """Opens a keep-list; raises a ValueError if the file is none."""
    try:
        file = pq.ParquetFile(path, **options)
    except FileNotFoundError:
        raise ValueError(f"there is no keep-list '{path}'; write it, or name another") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(
            f"the keep-list '{path}' is not a parquet file; write one with the columns shard and "
            "index"
        ) from error
    schema = file.schema_arrow
    refuse_score_table(path, schema.names)
    missing = [name for name in ("shard", "index") if name not in schema.names]
    if missing:
        raise ValueError(
            f"the keep-list '{path}' has no column {' and no column '.join(missing)}; it needs "
            "shard (the tar's file name) and index (the sample's number in it)"
        )
    named = schema.field("shard").type
    named = named.value_type if pa.types.is_dictionary(named) else named
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not any(is_text(named) for is_text in texts):
        raise ValueError(
            f"the column shard of the keep-list '{path}' is {named}; it holds the file names of "
            "tars, such as 00000.tar"
        )
    if not pa.types.is_integer(schema.field("index").type):
        raise ValueError(
            f"the column index of the keep-list '{path}' is {schema.field('index').type}; it holds "
            "whole numbers, the first sample of a tar is 0"
        )
    if "weight" in schema.names:
        kind = schema.field("weight").type
        if pa.types.is_string(kind) or pa.types.is_nested(kind):
            raise ValueError(
                f"the column weight of the keep-list '{path}' is {kind}; it holds "
                "numbers, 0 or more"
            )
    return file
