"""Samples that a data card shows: drawn by a hash of their keys, with image, caption and values.

In: rows of a score table, files of filters, the shards. Out: as many examples as there is room for.
"""

import base64
import heapq
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ...data.curate.score import shard_names
from ...data.curate.table import Table, file_of
from ...data.errors import SampleError
from ...data.hashing import mix, seeded
from ...data.images.decode import EncodedImage
from ...data.shards.fields import find_image
from ...data.shards.manifest import Manifest
from ...data.shards.reader import ShardReader

THUMBNAIL = 96  # pixels
# Columns that say nothing beside an image.
HIDDEN = {"verdict", "key", "caption", "shard", "index", "name", "error", "phash"}


@dataclass(order=True)
class Example:
    """A sample that is shown; those with the lowest `rank` are."""

    rank: int
    source: str = field(compare=False)
    shard: str = field(compare=False)
    index: int = field(compare=False)
    caption: str = field(compare=False)
    image: str = field(compare=False, default="")
    values: dict[str, str] = field(compare=False, default_factory=dict)


@dataclass
class Examples:
    """The samples with the lowest ranks of all that were added."""

    size: int
    heap: list[tuple[int, Example]] = field(default_factory=list)

    def add(self, rows: Mapping[str, np.ndarray], ranks: np.ndarray, at: np.ndarray) -> None:
        """Adds rows `at` of a shard, by their ranks [n]."""
        for row in at[np.argsort(ranks[at])[: self.size]].tolist():
            source, shard = (str(rows[name][row]) for name in ("source", "shard"))
            caption = str(rows["caption"][row] or "")
            index, rank = int(rows["index"][row]), int(ranks[row])
            item = (-rank, Example(rank, source, shard, index, caption))
            if len(self.heap) < self.size:
                heapq.heappush(self.heap, item)
            else:
                heapq.heappushpop(self.heap, item)

    def sorted(self) -> list[Example]:
        """Returns them by rank."""
        return sorted(example for _, example in self.heap)


def ranks_of(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns a random number of each row, by its key: re-sharding shows the same samples."""
    places = mix(rows["index"], seeded("card"))
    keys = [-1 if key is None or key != key else int(key) for key in rows["key"].tolist()]
    return mix(np.array(keys, dtype=np.int64), seeded("card", "keys")) + (places >> np.uint64(60))


def shown_columns(folder: Path, table: Table) -> list[str]:
    """Returns the columns of a table's or a filter's files that say something beside an image."""
    source, shard, _ = table.shards[0]
    schema = pq.read_schema(folder / file_of(source, shard))
    return [
        each.name
        for each in schema
        if not (each.name in HIDDEN or each.name.endswith("_hash"))
        and not pa.types.is_nested(each.type)
    ]


def add_values(examples: Iterable[Example], columns: Mapping[str, Path]) -> None:
    """Gives examples their values in columns, by name with the folder of their files."""
    for example in examples:
        for name, folder in columns.items():
            rows = pq.read_table(folder / file_of(example.source, example.shard), columns=[name])
            if (value := rows[name][example.index].as_py()) is not None:
                example.values[name] = cell_of(value)


def cell_of(value: Any) -> str:
    """Returns a value as the page shows it."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def add_images(examples: list[Example], manifest: Manifest | None) -> str:
    """Reads the images of examples; returns why some are missing, or nothing."""
    if manifest is None:
        return "No image is shown without the manifest (--manifest)."
    sources = [manifest.sources[number] for number in manifest.source_ids.tolist()]
    numbers = {key: n for n, key in enumerate(zip(sources, shard_names(manifest), strict=True))}
    reader = ShardReader(manifest.urls)
    missing = 0
    for example in examples:
        shard = numbers.get((example.source, example.shard))
        if shard is None:
            raise ValueError(
                f"the manifest has no shard '{example.shard}' of the source '{example.source}'; "
                "give the one that the score table was made from"
            )
        try:
            example.image = _thumbnail(find_image(reader.read(shard, example.index)))
        except (SampleError, ValueError):
            missing += 1
    return f"Images that could not be read: {missing}." if missing else ""


def _thumbnail(data: bytes) -> str:
    """Returns an image as an address that holds it."""
    pixels = EncodedImage.open(data).pixels().permute(1, 2, 0).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
