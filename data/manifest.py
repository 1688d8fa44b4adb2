"""The list of shards a run reads: one row a shard, held as columns.

In: a parquet file with `source, url, num_samples, num_bytes, sha256`. Out: counts for the plan,
addresses for the reader, a fingerprint for resume. Memory grows with shards (some hundred bytes
each), never with samples.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("url", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
# Looking at every file of a larger set would delay the start; the sample still finds a wrong path.
MAX_SHARDS_CHECKED = 10_000


class ShardUrls(Sequence[str]):
    """The shards' addresses, resolved against the manifest's folder when asked for.

    Args:
        column: Addresses as written in the manifest.
        folder: Where relative addresses start.
    """

    def __init__(self, column: pa.Array, folder: Path):
        self._column = column
        self._folder = str(folder)

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        url = self._column[int(index)].as_py()
        return url if "://" in url else os.path.join(self._folder, url)


class Manifest:
    """Shards of one or more named sources.

    Args:
        table: Columns as in `SCHEMA`.
        folder: Where relative addresses start: the manifest file's folder.

    Attributes:
        counts: Samples of each shard, int64 [shards].
        urls: Resolved addresses of the shards.
        sources: Names of the sources, sorted.
        source_ids: Index into `sources` of each shard, int64 [shards].
        num_samples: Sum of the counts.
        fingerprint: Hexadecimal; of sources, file names, counts, sizes and checksums, not of the
            folder, so that a moved data set keeps it.
    """

    def __init__(self, table: pa.Table, folder: str | os.PathLike[str]):
        table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        self._table = table
        self.counts: np.ndarray = table["num_samples"].to_numpy()
        self.num_bytes: np.ndarray = table["num_bytes"].to_numpy()
        self.urls = ShardUrls(_array(table["url"]), Path(folder).resolve())
        names = _array(table["source"]).dictionary_encode()
        spelled: list[str] = names.dictionary.to_pylist()
        self.sources: list[str] = sorted(spelled)
        rank = np.array([self.sources.index(name) for name in spelled], dtype=np.int64)
        self.source_ids: np.ndarray = rank[names.indices.to_numpy()]
        self.num_samples = int(self.counts.sum())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Manifest":
        """Reads a manifest file.

        Raises:
            ValueError: The file is missing, is no manifest, or lists no samples.
        """
        path = Path(path)
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "does not exist"
            raise ValueError(
                f"the manifest '{path}' {what}; write one with `counterpoint data index` and give "
                "its path as data.manifest"
            )
        try:
            table = pq.read_table(path)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"'{path}' is not a parquet file; data.manifest takes what `counterpoint data "
                "index` writes"
            ) from error
        missing = [name for name in SCHEMA.names if name not in table.column_names]
        if missing:
            raise ValueError(
                f"'{path}' has no column {', '.join(missing)}; data.manifest takes what "
                "`counterpoint data index` writes"
            )
        manifest = cls(table, path.parent)
        if not manifest.num_samples or manifest.counts.min() < 0:
            raise ValueError(
                f"the manifest '{path}' lists {len(manifest.counts)} shards with "
                f"{manifest.num_samples} samples; index shards that hold some"
            )
        return manifest

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the manifest; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pq.write_table(self._table, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @property
    def fingerprint(self) -> str:
        """Hash of what the shards are, wherever they lie."""
        digest = hashlib.sha256()
        source, url, sha256 = (
            self._table[name].to_pylist() for name in ("source", "url", "sha256")
        )
        for texts in (source, [path.rpartition("/")[2] for path in url], sha256):
            joined = "\n".join(texts).encode()
            digest.update(len(joined).to_bytes(8, "little") + joined)
        for numbers in (self.counts, self.num_bytes):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    def check_files(self) -> None:
        """Looks at the shard files (at most 10,000, evenly spread) before a run starts.

        Raises:
            ValueError: Shards are missing, have another size than when they were indexed, or are
                remote.
        """
        num_shards = len(self.urls)
        picks = np.arange(num_shards)
        if num_shards > MAX_SHARDS_CHECKED:
            picks = np.linspace(0, num_shards - 1, MAX_SHARDS_CHECKED).astype(np.int64)
        missing: list[str] = []
        for shard in picks.tolist():
            url = self.urls[shard]
            if "://" in url or url.startswith("pipe:"):
                raise ValueError(
                    f"the shard '{url}' is not a local file; copy the shards to a local folder and "
                    "index them there"
                )
            try:
                found = os.stat(url).st_size
            except OSError:
                missing.append(url)
                continue
            expected = int(self.num_bytes[shard])
            if expected > 0 and found != expected:
                state = "was cut off" if found < expected else "was rewritten"
                raise ValueError(
                    f"the shard '{url}' has {found} bytes, {expected} when it was indexed: it "
                    f"{state}; fetch it again, or index the shards anew"
                )
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(picks)} shards looked at are missing, the first is "
                f"'{missing[0]}'; restore them, or index the shards where they are now"
            )


def _array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array; `combine_chunks` leaves an empty column without any."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
