"""Checks the captions and the keys of some samples before training starts.

In: the shards, a reader, caption policies, keep-lists. Out: nothing, or a ValueError: with a
misspelt caption field every sample would be replaced, which the error budget notices only later;
a list of another pool with shards of the same names would choose other samples.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .errors import SampleError
from .order.keep_lists import KeepLists
from .shards.fields import find_image, read_json, sample_key
from .shards.manifest import Manifest, is_remote
from .shards.reader import RawSample, ShardReader
from .text.captions import CaptionPolicy
from .text.regions import RegionText
from .urls import base_name

# Per source, evenly spread; the first one with a caption is enough.
NUM_SHARDS = 8
NUM_SAMPLES = 8
MAX_LISTED = 12
OF_A_RUN = "set data.caption, or the caption of this source in data.sources, to where it is"


def check_captions(
    manifest: Manifest,
    reader: ShardReader,
    captions: Mapping[str, CaptionPolicy],
    fix: str = OF_A_RUN,
) -> None:
    """Looks for a caption in every source; remote shards are not fetched.

    Args:
        manifest: the shards.
        reader: reads the shards.
        captions: the caption policy of each source in use.
        fix: what the message advises.

    Raises:
        ValueError: a source has samples, and none of those checked has a caption.
    """
    for source, policy in captions.items():
        number = manifest.sources.index(source)
        shards = np.flatnonzero((manifest.source_ids == number) & (manifest.counts > 0))
        empty: list[RawSample] = []
        for shard, ordinal in _spread(shards, manifest.counts):
            if is_remote(manifest.urls[shard]):
                continue
            try:
                raw = reader.read(shard, ordinal)
                policy(raw, 0.0)
            except SampleError as error:
                if error.cause == "no_caption":
                    empty.append(raw)
                    continue
            # It has a caption, or it is unreadable, which does not concern captions.
            empty.clear()
            break
        if empty:
            raise ValueError(
                f"the source '{source}' has no caption in {', '.join(policy.fields)}: "
                f"none of {len(empty)} samples looked at, which have {contents(empty[0])}; {fix}"
            )


def check_regions(
    manifest: Manifest,
    reader: ShardReader,
    sources: Sequence[str],
    texts: Mapping[str, RegionText],
) -> None:
    """Looks for a region for every text that is of one; one source is enough.

    Args:
        manifest: the shards.
        reader: reads the shards.
        sources: those in use.
        texts: the policies by batch entry.

    Raises:
        ValueError: none of the samples looked at has a region, or one has a box that is none.
    """
    for entry, policy in texts.items():
        empty: list[RawSample] = []
        numbers = map(manifest.sources.index, sources)
        for raw in (raw for number in numbers for raw in some_samples(manifest, reader, number)):
            try:
                policy(raw, 0.0)
            except SampleError as error:
                if error.cause == "no_caption":
                    empty.append(raw)
                    continue
                raise ValueError(f"the text '{entry}': {error.args[1]}") from error
            empty.clear()
            break
        if empty:
            raise ValueError(
                f"the text '{entry}' is of regions in {policy.fields[0]}, and none of {len(empty)} "
                f"samples looked at has any; they have {contents(empty[0])}; set its field to "
                "where regions are, or leave out the text and the tasks that read or write it"
            )


def check_images(manifest: Manifest, reader: ShardReader, sources: Iterable[str]) -> None:
    """Looks for an image in every source that is read for its images.

    Raises:
        ValueError: a source has samples, and none of those checked has an image.
    """
    for source in sources:
        samples = some_samples(manifest, reader, manifest.sources.index(source))
        without: list[RawSample] = []
        for raw in samples:
            try:
                find_image(raw)
            except SampleError as error:
                if error.cause == "no_image":
                    without.append(raw)
                    continue
            without.clear()
            break
        if without:
            raise ValueError(
                f"a term reads images, and the source '{source}' has none: none of {len(without)} "
                f"samples looked at, which have {contents(without[0])}; let terms read texts "
                "alone, or name shards with images"
            )


def some_samples(manifest: Manifest, reader: ShardReader, source: int) -> Iterator[RawSample]:
    """Yields some readable samples of a source, evenly spread; remote shards are not fetched."""
    shards = np.flatnonzero((manifest.source_ids == source) & (manifest.counts > 0))
    for shard, ordinal in _spread(shards, manifest.counts):
        if not is_remote(manifest.urls[shard]):
            with contextlib.suppress(SampleError):
                yield reader.read(shard, ordinal)


def check_keys(
    paths: Sequence[Path],
    manifest: Manifest,
    reader: ShardReader,
    key_fields: Mapping[str, str],
) -> None:
    """Compares the keys of some samples with those in each keep-list; remote shards are not read.

    Args:
        paths: the lists; those without int64 keys are passed over.
        manifest: the shards.
        reader: reads the shards.
        key_fields: JSON field that identifies a sample, by source.

    Raises:
        ValueError: none of a list's samples that were looked at has the key of the list.
    """
    for path in paths:
        different = 0
        for shard, index, key in _listed(path, manifest):
            url, source = manifest.urls[shard], manifest.sources[manifest.source_ids[shard]]
            if is_remote(url):
                continue
            try:
                raw = reader.read(shard, index)
                found = sample_key(raw, source, base_name(url), key_fields[source])
            except SampleError:
                continue
            if found == key:
                different = 0
                break
            different += 1
        if different:
            raise ValueError(
                f"the keep-list '{path}' is of other samples: none of {different} looked at has "
                "the key of the list; if it is of another pool with shards of the same names, or "
                "of one that was divided anew, counterpoint keep locate moves it; else set "
                "data.key_field to the field that its score table was written with"
            )


def _listed(path: Path, manifest: Manifest) -> list[tuple[int, int, int]]:
    """Returns shard, index and key of some of a list's first rows; none without int64 keys."""
    schema = pq.read_schema(path)
    if "key" not in schema.names or schema.field("key").type != pa.int64():
        return []
    rows = next(KeepLists([path], manifest).rows(path, with_keys=True), None)
    if rows is None or not len(rows.indices):
        return []
    last = len(rows.indices) - 1
    at = np.unique(np.linspace(0, last, min(NUM_SAMPLES, last + 1)).astype(np.int64))
    parts = (rows.shards[at], rows.indices[at], rows.keys[at])
    return list(zip(*(part.tolist() for part in parts), strict=True))


def _spread(shards: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Returns some (shard, ordinal), evenly spread, the first ones first."""

    def some(length: int, most: int) -> list[int]:
        return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64)).tolist()

    chosen = [int(shards[i]) for i in some(len(shards), NUM_SHARDS)]
    return [
        (shard, ordinal) for shard in chosen for ordinal in some(int(counts[shard]), NUM_SAMPLES)
    ]


def contents(sample: RawSample) -> str:
    """Lists the fields that may hold a sample's texts."""
    names = sorted(sample.keys() - {"__key__"})
    with contextlib.suppress(SampleError):
        names += [f"json:{name}" for name in read_json(sample, "json")]
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")
