"""Stores the SHA-256 of every shard in a manifest, so that fetched shards can be checked.

In: a manifest file. Out: the same file with the column `sha256` filled. A remote shard is
fetched to a temporary folder and removed again.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import whole_file
from ..urls import scheme
from .transfer import digest
from .transport import FetchError, Transport


def store_checksums(
    path: str | os.PathLike[str],
    progress: Callable[[int, int], None] | None = None,
    transport: Transport | None = None,
) -> None:
    """Reads every shard of a manifest once and stores its checksum.

    Args:
        path: the manifest; replaced atomically.
        progress: called with (shards done, shards in all) after each shard.
        transport: fetches remote shards.

    Raises:
        ValueError: a shard is missing.
    """
    path = Path(path)
    table = pq.read_table(path)
    urls = table["url"].to_pylist()
    digests = []
    for done, url in enumerate(urls, start=1):
        if scheme(url):
            try:
                with (transport or Transport()).temporary_copy(url) as copy:
                    digests.append(digest(copy))
            except FetchError as error:
                raise ValueError(f"{error}; check the address, or leave the shard out") from error
        else:
            shard = path.parent / url  # an absolute url stays as it is
            if not shard.is_file():
                raise ValueError(
                    f"{path} lists the shard {shard}, which does not exist; index again"
                )
            digests.append(digest(shard))
        if progress:
            progress(done, len(urls))
    column = table.schema.get_field_index("sha256")
    table = table.set_column(column, "sha256", pa.array(digests, pa.string()))
    with whole_file(path) as part:
        pq.write_table(table, part)
