"""The list of shards a run reads: one row a shard, held as columns.

In: parquet files with `source, url, num_samples, num_bytes, sha256`. Out: counts for the plan,
addresses for the reader, a fingerprint for resume. Memory grows with shards (some hundred bytes
each), never with samples.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from ..files import whole_file

# Its functions are made at import, where no type checker sees them.
pc: Any = pyarrow.compute

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("url", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
    ]
)
# Checking every file of a larger set would delay the start; a sample still finds a wrong path.
MAX_SHARDS_CHECKED = 10_000


def is_remote(url: str) -> bool:
    """Whether an address such as `s3://...` or `pipe:...` is no path of a file."""
    return "://" in url or url.startswith("pipe:")


class Column(Sequence[str]):
    """One text a shard, read from the manifest's column on access.

    Args:
        column: the manifest's column.
    """

    def __init__(self, column: pa.Array):
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._shown(self._column[int(index)].as_py())

    def _shown(self, text: str) -> str:
        return text


class ShardUrls(Column):
    """The shards' addresses, resolved against the manifest's folder on access.

    Args:
        column: addresses as written in the manifest.
        folder: base of relative addresses.
    """

    def __init__(self, column: pa.Array, folder: Path):
        super().__init__(column)
        self._folder = str(folder)

    def _shown(self, text: str) -> str:
        return text if is_remote(text) else os.path.join(self._folder, text)

    def names(self) -> list[str]:
        """Returns the file name of each shard, the last part of its address."""
        return _file_names(self._column).to_pylist()


class Manifest:
    """Shards of one or more named sources.

    Args:
        table: columns as in `SCHEMA`.
        folder: base of relative addresses: the manifest file's folder.

    Attributes:
        counts: samples of each shard, int64 [shards].
        urls: resolved addresses of the shards.
        checksums: SHA-256 of the shards, "" where none was stored.
        sources: names of the sources, sorted.
        source_ids: index into `sources` of each shard, int64 [shards].
        num_samples: sum of the counts.
        fingerprint: hexadecimal; of sources, file names, counts, sizes and checksums, not of the
            folder, so that a moved data set keeps it.
    """

    def __init__(self, table: pa.Table, folder: str | os.PathLike[str]):
        table = table.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
        self._table = table
        self._folder = folder
        self.counts: np.ndarray = table["num_samples"].to_numpy()
        self.num_bytes: np.ndarray = table["num_bytes"].to_numpy()
        self.urls = ShardUrls(_array(table["url"]), Path(folder).resolve())
        self.checksums = Column(_array(table["sha256"]))
        names = _array(table["source"]).dictionary_encode()
        spelled: list[str] = names.dictionary.to_pylist()
        self.sources: list[str] = sorted(spelled)
        rank = np.array([self.sources.index(name) for name in spelled], dtype=np.int64)
        self.source_ids: np.ndarray = rank[names.indices.to_numpy()]
        self.num_samples = int(self.counts.sum())

    @classmethod
    def load(cls, paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> "Manifest":
        """Reads one manifest file, or several as one.

        Args:
            paths: the file, or files with sources of different names, whose shards are listed one
                file after the other. Each file's relative addresses start at its own folder.

        Raises:
            ValueError: a file is missing, is no manifest, or lists no samples; two files have a
                source of the same name.
        """
        if isinstance(paths, str | os.PathLike):
            return cls(_read(Path(paths)), Path(paths).parent)
        if not paths:
            raise ValueError("data.manifest is an empty list; give at least one manifest file")
        owners: dict[str, Path] = {}
        tables: list[pa.Table] = []
        for path in map(Path, paths):
            table = _read(path)
            for source in pc.unique(table["source"]).to_pylist():
                if source in owners:
                    raise ValueError(
                        f"the source '{source}' is in '{owners[source]}' and in '{path}'; index "
                        "one of them again under another name, or both in one call"
                    )
                owners[source] = path
            tables.append(_with_full_addresses(table, path.parent))
        return cls(pa.concat_tables(tables), Path("/"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the manifest atomically."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            pq.write_table(self._table, part)

    def part(self, chosen: np.ndarray) -> "Manifest":
        """Returns the manifest of some of the shards, bool [shards]."""
        return Manifest(self._table.filter(pa.array(chosen)), self._folder)

    def relocated(self, new_urls: Mapping[int, str]) -> "Manifest":
        """Returns the manifest with other addresses for some shards, by number."""
        urls = self._table["url"].to_pylist()
        for shard, url in new_urls.items():
            urls[shard] = url
        column = SCHEMA.get_field_index("url")
        table = self._table.set_column(column, "url", pa.array(urls, pa.string()))
        return Manifest(table, self._folder)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the shards, independent of their folder."""
        digest = hashlib.sha256()
        source, url, sha256 = (_array(self._table[name]) for name in ("source", "url", "sha256"))
        for texts in (source, _file_names(url), sha256):
            joined = _joined(texts)
            digest.update(len(joined).to_bytes(8, "little") + joined)
        for numbers in (self.counts, self.num_bytes):
            digest.update(numbers.astype("<i8").tobytes())
        return digest.hexdigest()[:32]

    @property
    def remote(self) -> np.ndarray:
        """Which shards are not files of this machine, bool [shards]; see `is_remote`."""
        return pc.match_substring_regex(self._table["url"], "^pipe:|://").to_numpy()

    def check_files(self) -> dict[str, str]:
        """Checks the shards (at most 10,000, evenly spread) before a run starts.

        Returns:
            One remote address of each scheme (`https`, `s3`, `pipe`, ...).

        Raises:
            ValueError: shards are missing, or have another size than when they were indexed.
        """
        num_shards = len(self.urls)
        picks = np.arange(num_shards)
        if num_shards > MAX_SHARDS_CHECKED:
            picks = np.linspace(0, num_shards - 1, MAX_SHARDS_CHECKED).astype(np.int64)
        missing: list[str] = []
        remote: dict[str, str] = {}
        for shard in picks.tolist():
            url = self.urls[shard]
            if is_remote(url):
                remote.setdefault(url.partition(":")[0], url)
                continue
            try:
                num_bytes = os.stat(url).st_size
            except OSError:
                missing.append(url)
                continue
            expected = int(self.num_bytes[shard])
            if expected > 0 and num_bytes != expected:
                state = "was cut off" if num_bytes < expected else "was rewritten"
                raise ValueError(
                    f"the shard '{url}' has {num_bytes} bytes, {expected} when it was indexed: it "
                    f"{state}; fetch it again, or index the shards anew"
                )
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(picks)} shards looked at are missing, the first is "
                f"'{missing[0]}'; restore them, or index the shards where they are now"
            )
        return remote


def _read(path: Path) -> pa.Table:
    """Reads a manifest file's table; raises a ValueError if the file is none."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        fix = "write one with `counterpoint data index` and give its path as data.manifest"
        inside = sorted(path.glob("*.parquet"), key=lambda each: (each.stem != "train", each))
        if inside:
            fix = f"name a file in it, such as {inside[0]}"
        for corpus in () if inside else {"emoji", "icons"}.intersection(path.parts):
            folder = Path(*path.parts[: path.parts.index(corpus) + 1])
            fix = f"build the {corpus} corpus with `counterpoint data {corpus} {folder}`"
        raise ValueError(f"the manifest '{path}' {what}; {fix}")
    try:
        # `read_table` would read a folder named `source=x` as another column.
        with pq.ParquetFile(path) as file:
            table = file.read()
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
    table = table.select(SCHEMA.names).cast(SCHEMA)
    num_samples = pc.sum(table["num_samples"]).as_py() or 0
    if num_samples < 1 or pc.min(table["num_samples"]).as_py() < 0:
        raise ValueError(
            f"the manifest '{path}' lists {len(table)} shards with {num_samples} samples; index "
            "shards that hold some"
        )
    return table


def _with_full_addresses(table: pa.Table, folder: Path) -> pa.Table:
    """Returns the table with absolute paths."""
    url = table["url"]
    is_absolute = pc.match_substring_regex(url, "^/|^pipe:|://")
    joined = pc.binary_join_element_wise(str(folder.resolve()), url, "/")
    return table.set_column(
        SCHEMA.get_field_index("url"), "url", pc.if_else(is_absolute, url, joined)
    )


def _file_names(urls: pa.Array) -> pa.Array:
    """Returns what follows the last slash of each address, as `base_name` does of one."""
    # The query of a signed address changes with every signature, and has slashes in it.
    urls = pc.replace_substring_regex(urls, r"(?s)^(https?://[^?#]*)[?#].*$", r"\1")
    return pc.replace_substring_regex(urls, r"(?s)^.*/", "")


def _joined(texts: pa.Array) -> bytes:
    """Returns the texts with newlines between them; in Arrow, since a list takes seconds."""
    as_list = pa.ListArray.from_arrays(pa.array([0, len(texts)], pa.int32()), texts)
    return pc.binary_join(as_list, "\n")[0].as_buffer().to_pybytes()


def _array(column: pa.ChunkedArray) -> pa.Array:
    """Returns a column as one array; `combine_chunks` leaves an empty column without any."""
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
