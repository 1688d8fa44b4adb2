"""SHA-256 of every shard into a manifest that exists: whoever fetches shards can check them.

In: a manifest file whose shards are on this machine. Out: the same file with the column `sha256`
filled.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 1 << 20


def store_checksums(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> None:
    """Reads every shard of a manifest once and stores its checksum.

    Args:
        path: the manifest; it is replaced whole, or not at all.
        progress: called with (shards done, shards in all) after each shard.

    Raises:
        ValueError: a shard is missing.
    """
    path = Path(path)
    table = pq.read_table(path)
    urls = table["url"].to_pylist()
    digests = []
    for done, url in enumerate(urls, start=1):
        shard = path.parent / url  # an absolute url stays as it is
        if not shard.is_file():
            raise ValueError(f"{path} lists the shard {shard}, which does not exist; index again")
        digests.append(digest(shard))
        if progress:
            progress(done, len(urls))
    column = table.schema.get_field_index("sha256")
    table = table.set_column(column, "sha256", pa.array(digests, pa.string()))
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    pq.write_table(table, partial)
    partial.replace(path)


def digest(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            state.update(block)
    return state.hexdigest()
