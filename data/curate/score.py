"""One pass over the shards of a pool: what the score table says of each sample.

In: a manifest and which texts of a sample are read. Out: the rows of a shard, in its order. Samples
go through the checks of training in the same order, and one that training would replace has the
same cause in `error`. Memory holds the rows of a shard.
"""

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import SampleError
from ..files import check_own
from ..hashing import bytes_hash, text_hash
from ..images.decode import EncodedImage
from ..images.perceptual import SIDE, perceptual_hashes
from ..shards.fields import find_image, read_json, read_text, sample_key, value_at
from ..shards.manifest import Manifest
from ..shards.reader import RawSample, ShardReader, open_shard
from ..shards.transport import FetchError, Transport
from ..sidecar import check_file_names
from ..start_checks import check_captions, contents, some_samples
from ..text.captions import FirstFound
from ..urls import base_name, shown
from .table import ABOUT, COLUMNS, file_of, read_rows, write_about, write_rows

VERSION = 1  # raise it when the same samples give other rows

# Kinds of further columns.
KINDS = {"text": pa.string(), "number": pa.float64()}

# Samples read before their images are decoded, and bytes of these.
FILES_AT_ONCE, MAX_BYTES = 64, 64 << 20

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoreSettings:
    """What is read of each sample.

    Args:
        captions: caption fields by source, in order of preference.
        key_fields: JSON field that identifies a sample, by source.
        fields: further columns: a field (`json:style`, `alt`) and `text` or `number`.
        pixels: whether images are decoded, for `phash` and for damage that the header hides.

    Raises:
        ValueError: two fields are one column, or one has a name that the table uses.
    """

    captions: Mapping[str, tuple[str, ...]]
    key_fields: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)
    pixels: bool = True

    def __post_init__(self):
        names = [*COLUMNS.names, *map(column_of, self.fields)]
        twice = [name for name, times in Counter(names).items() if times > 1]
        if twice:
            raise ValueError(f"the score table has a column '{twice[0]}' already; leave one out")

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        more = [pa.field(column_of(name), KINDS[kind]) for name, kind in self.fields.items()]
        return pa.schema([*COLUMNS, *more])

    def about(self, manifest: Manifest) -> dict[str, Any]:
        """Returns what makes two tables the same."""
        return {
            "version": VERSION,
            "manifest": manifest.fingerprint,
            "captions": {name: list(fields) for name, fields in self.captions.items()},
            "key_fields": dict(self.key_fields),
            "fields": dict(self.fields),
            "pixels": self.pixels,
        }


@dataclass(frozen=True)
class Scores:
    """The score table of a pool, as it is written.

    Args:
        folder: the table's folder.
        manifest: the pool.
        settings: what is read.
        transport: fetches remote shards, one at a time to a temporary copy.
    """

    folder: Path
    manifest: Manifest
    settings: ScoreSettings
    transport: Transport = field(default_factory=Transport)

    def open(self) -> None:
        """Begins the table, or goes on with one of the same pool and settings.

        Raises:
            ValueError: the folder holds another table, files are missing, a source has no captions,
                or two shards would have the same file.
        """
        check_file_names(self.manifest)
        about = self.settings.about(self.manifest)
        if (self.folder / ABOUT).exists():
            stored = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
            if other := [name for name, value in about.items() if stored.get(name) != value]:
                how = "; ".join(_differing(name, stored.get(name), about[name]) for name in other)
                raise ValueError(
                    f"'{self.folder}' holds a score table of other {how}; choose another --out, or "
                    "remove the folder"
                )
        else:
            check_own(self.folder, ABOUT)
        for url in self.manifest.check_files().values():
            self.transport.require(url)
        policies = {name: FirstFound(fields) for name, fields in self.settings.captions.items()}
        reader, fix = ShardReader(self.manifest.urls), "give --caption [SOURCE=]FIELD where it is"
        check_captions(self.manifest, reader, policies, fix)
        if not (self.folder / ABOUT).exists():
            sources = [self.manifest.sources[i] for i in self.manifest.source_ids]
            counts = self.manifest.counts.tolist()
            shards = list(zip(sources, shard_names(self.manifest), counts, strict=True))
            write_about(self.folder, shards, about)

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        source = self.manifest.sources[self.manifest.source_ids[shard]]
        return self.folder / file_of(source, base_name(self.manifest.urls[shard]))

    def missing(self) -> list[int]:
        """Shards that have no file."""
        return [s for s in range(len(self.manifest.counts)) if not self.path(s).exists()]

    def write(self, shard: int, name: str) -> None:
        """Writes the rows of a shard.

        Args:
            shard: its number in the manifest.
            name: what keep-lists call it; see `shard_names`.

        Raises:
            ValueError: it cannot be opened at all.
        """
        try:
            write_rows(self.path(shard), self.rows(shard, name))
        except FetchError as error:
            raise ValueError(f"{error}; start again when it can, or index without it") from error

    def rows(self, shard: int, name: str) -> pa.Table:
        """Returns the rows of a shard, in its order; see `write`."""
        source = self.manifest.sources[self.manifest.source_ids[shard]]
        file = base_name(self.manifest.urls[shard])
        caption = FirstFound(self.settings.captions[source])
        schema = self.settings.schema
        rows: list[Row] = []
        thumbnails: list[np.ndarray] = []
        files: list[tuple[Row, bytes]] = []
        num_bytes = 0
        count = int(self.manifest.counts[shard])
        with open_shard(self.manifest, shard, self.transport) as reader:
            for index in range(count):
                row: Row = {"source": source, "shard": name, "index": index}
                rows.append(row)
                try:
                    raw = reader.read(0, index)
                    row["name"] = raw["__key__"]
                    row["key"] = sample_key(raw, source, file, self.settings.key_fields[source])
                    texts = self._texts(raw, caption)
                    data = find_image(raw)
                except SampleError as error:
                    if error.cause == "shard_missing":
                        reason = f"{error.args[1]}; restore it, or index without it"
                        raise ValueError(reason) from error
                    row["error"] = error.cause
                else:
                    files.append((row | texts, data))
                    rows[-1] = files[-1][0]
                    num_bytes += len(data)
                # As in the loader: alternating evicts each stage's code from the caches.
                if len(files) == FILES_AT_ONCE or num_bytes > MAX_BYTES or index + 1 == count:
                    for each, data in files:
                        self._look(each, data, thumbnails)
                    files, num_bytes = [], 0
        table = pa.table({each: [row.get(each) for row in rows] for each in schema.names}, schema)
        if not self.settings.pixels:
            return table
        usable = np.array(["error" not in row for row in rows], dtype=bool)
        hashes = np.zeros(len(usable), dtype=np.int64)
        if thumbnails:
            hashes[usable] = perceptual_hashes(np.stack(thumbnails))
        at = schema.get_field_index("phash")
        return table.set_column(at, COLUMNS.field("phash"), pa.array(hashes, mask=~usable))

    def _texts(self, raw: RawSample, policy: FirstFound) -> Row:
        caption = policy(raw, 0.0)
        row: Row = {
            "caption": caption,
            "words": len(caption.split()),
            "characters": len(caption),
            "caption_hash": text_hash(caption),
        }
        for name, kind in self.settings.fields.items():
            row[column_of(name)] = field_value(raw, name, kind)
        return row

    def _look(self, row: Row, data: bytes, thumbnails: list[np.ndarray]) -> None:
        """Adds what is known of the image, or the reason why it cannot be used and nothing else."""
        try:
            image = EncodedImage.open(data)
            if self.settings.pixels:
                thumbnails.append(image.thumbnail(SIDE))
        except SampleError as error:
            for name in row.keys() - {"source", "shard", "index", "name", "key"}:
                del row[name]
            row["error"] = error.cause
            return
        row |= {
            "width": image.width,
            "height": image.height,
            "num_bytes": len(data),
            "image_hash": bytes_hash(data),
        }

    def unseen_fields(self) -> str:
        """Returns a sentence about fields that none of some samples has; nothing if all are found.

        It is no refusal: few samples may have a field.
        """
        missing, reader = dict(self.settings.fields), ShardReader(self.manifest.urls)
        looked_at, last = 0, {}
        for source in range(len(self.manifest.sources)):
            for raw in some_samples(self.manifest, reader, source):
                if not missing:
                    return ""
                looked_at, last = looked_at + 1, raw
                missing = {n: k for n, k in missing.items() if field_value(raw, n, k) is None}
        if not missing or not looked_at:
            return ""
        named = " or ".join(f"a {kind} in {name}" for name, kind in missing.items())
        return f"none of {looked_at} samples looked at has {named}; they have {contents(last)}"

    def empty_fields(self) -> list[str]:
        """Returns the fields that no sample of the whole table has."""
        empty = list(self.settings.fields)
        for shard in range(len(self.manifest.counts)):
            if not empty:
                break
            rows = read_rows(self.path(shard), [column_of(name) for name in empty])
            empty = [n for n in empty if rows[column_of(n)].null_count == len(rows)]
        return empty

    def errors(self) -> Counter[str]:
        """Returns how many samples of the whole table cannot be used, by cause."""
        causes: Counter[str] = Counter()
        for shard in range(len(self.manifest.counts)):
            column = read_rows(self.path(shard), ["error"])["error"]
            causes.update(column.drop_null().to_pylist())
        return causes


def _differing(name: str, stored: Any, wanted: Any) -> str:
    """Returns what differs between two values of a setting."""
    if name == "manifest":
        return "shards (the manifest's)"
    if isinstance(stored, dict) and isinstance(wanted, dict):
        pairs = ((stored, wanted), (wanted, stored))
        stored, wanted = (
            ", ".join(f"{k}: {v}" for k, v in one.items() if other.get(k) != v) or "none"
            for one, other in pairs
        )
    return f"{name} (there {stored}, here {wanted})"


def shard_names(manifest: Manifest) -> list[str]:
    """Returns what keep-lists call each shard: its file name, or a longer end of its address.

    A name that several shards have (of different sources) is preceded by folders until it is the
    end of one address only.
    """
    names = manifest.urls.names()
    repeated = {name for name, times in Counter(names).items() if times > 1}
    addresses = {s: shown(manifest.urls[s]) for s, name in enumerate(names) if name in repeated}
    for depth in range(2, 2 + max((url.count("/") for url in addresses.values()), default=0)):
        ends = {shard: "/".join(url.split("/")[-depth:]) for shard, url in addresses.items()}
        times = Counter(ends.values())
        for shard in [shard for shard, end in ends.items() if times[end] == 1]:
            names[shard] = ends[shard]
            del addresses[shard]
    return [addresses.get(shard, name) for shard, name in enumerate(names)]


def column_of(field: str) -> str:
    """Returns the column of a field; a dot in a column's name would mean a store."""
    return field.replace(".", "_")


def field_value(sample: RawSample, field: str, kind: str) -> str | float | None:
    """Returns a field of a sample as `text` or `number`; None if it has none of the kind.

    Texts are taken as they are, other values of a JSON member in JSON's own form. A number is a
    number, or a text that is one. A member that cannot be read has no value: training may not need
    it.
    """
    extension, _, name = field.partition(":")
    try:
        value = (
            value_at(read_json(sample, extension), name) if name else read_text(sample, extension)
        )
    except SampleError:
        return None
    if kind == "text":
        if value is not None and not isinstance(value, str):
            value = json.dumps(value, sort_keys=True)
        # Half of a surrogate pair is no text.
        with contextlib.suppress(UnicodeEncodeError):
            return value and value.encode().decode()
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    with contextlib.suppress(ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
