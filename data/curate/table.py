"""The score table of a pool: one row a sample, one parquet file a shard.

In: rows in the order of their shards. Out: `TABLE/SOURCE/SHARD.parquet` and `TABLE/table.json`.
Columns of other origin, such as the embeddings of a store, are joined by the samples' keys, so that
neither a store nor a table is bound to how samples are divided into shards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import whole_file
from ..hashing import text_hash

ABOUT = "table.json"

# What every table has. Of a sample that cannot be used, `error` says why, and all that follows is
# empty.
COLUMNS = pa.schema(
    [
        ("key", pa.int64()),  # as batches and stores have it
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("shard", pa.dictionary(pa.int32(), pa.string())),  # as keep-lists name it
        ("index", pa.int32()),  # number in the tar
        ("name", pa.string()),  # in the tar
        ("error", pa.dictionary(pa.int32(), pa.string())),  # a cause of data/errors.py
        ("caption", pa.string()),
        ("width", pa.int32()),  # pixels
        ("height", pa.int32()),
        ("num_bytes", pa.int32()),  # of the image file
        ("words", pa.int32()),  # of the caption, separated by white space
        ("characters", pa.int32()),
        ("image_hash", pa.int64()),  # of the image file's bytes
        ("caption_hash", pa.int64()),
        ("phash", pa.int64()),  # perceptual hash of the image, 64 bits
    ]
)


@dataclass(frozen=True)
class Table:
    """A score table.

    Args:
        folder: its folder.

    Raises:
        ValueError: there is no table, or it is not complete.
    """

    folder: Path

    def __post_init__(self):
        if not (self.folder / ABOUT).is_file():
            raise ValueError(
                f"'{self.folder}' is no score table; write one with counterpoint score MANIFEST "
                f"--out {self.folder}"
            )
        if missing := [path for path in self.files if not path.is_file()]:
            raise ValueError(
                f"the score table '{self.folder}' is not complete ({missing[0]} is missing); start "
                "counterpoint score again, it goes on where it stopped"
            )

    @cached_property
    def about(self) -> dict[str, Any]:
        """What `table.json` holds: `shards` ([source, shard, samples], ...) and the settings."""
        return json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))

    @cached_property
    def shards(self) -> list[tuple[str, str, int]]:
        """Source, file name and number of samples of each shard, sorted."""
        return [(str(source), str(shard), int(n)) for source, shard, n in self.about["shards"]]

    @property
    def pool(self) -> str | None:
        """Fingerprint of the manifest that it was made from; None of a table made otherwise."""
        return self.about.get("manifest")

    @property
    def files(self) -> list[Path]:
        """The file of each of `shards`."""
        return [self.folder / file_of(source, shard) for source, shard, _ in self.shards]

    @property
    def num_samples(self) -> int:
        """Rows of all shards."""
        return sum(samples for _, _, samples in self.shards)

    @cached_property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return pq.read_schema(self.files[0]).names

    @property
    def fingerprint(self) -> str:
        """Hash of what the table was made of; changes when a file does."""
        stats = [f"{stat.st_size} {stat.st_mtime_ns}" for stat in (p.stat() for p in self.files)]
        return f"{text_hash(json.dumps(self.about, sort_keys=True), *stats):x}"


def file_of(source: str, shard: str) -> Path:
    """Returns where the rows of a shard lie below a table's folder."""
    return Path(source, f"{Path(shard).name.removesuffix('.tar')}.parquet")


def write_about(
    folder: Path, shards: Sequence[tuple[str, str, int]], settings: Mapping[str, Any]
) -> None:
    """Writes `table.json`, with which a table begins.

    Raises:
        ValueError: `folder` is a file.
    """
    if folder.is_file():
        raise ValueError(f"'{folder}' is a file, and a score table is a folder; name another --out")
    folder.mkdir(parents=True, exist_ok=True)
    about = {**settings, "shards": sorted(map(list, shards))}
    with whole_file(folder / ABOUT) as part:
        part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path, columns: Sequence[str], remove: Path | None = None) -> pa.Table:
    """Reads columns of a file of a table or of a filter.

    Args:
        path: the file.
        columns: their names.
        remove: what has to be removed for the file to be written again; the file by default.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return pq.read_table(path, columns=list(columns))
    except (pa.ArrowInvalid, OSError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"'{path}' cannot be read ({why}): remove '{remove or path}' and start the command "
            "that wrote it again, it goes on where it stopped"
        ) from error


def write_rows(path: Path, rows: pa.Table) -> None:
    """Writes rows as a parquet file, whole or not at all; equal rows are equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        pq.write_table(rows, part, compression="zstd", row_group_size=1 << 17)
