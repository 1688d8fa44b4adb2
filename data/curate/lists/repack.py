"""New tars with the samples of a keep-list, for those who want tars and no list.

In: a keep-list and the manifest of its shards. Out: `OUT/SOURCE/00000.tar`, `..._stats.json` beside
each, and `OUT/manifest.parquet`. Members are copied byte for byte, in the order of the old shards.
A tar is whole or absent. Memory holds a sample; remote shards are fetched one at a time.
"""

import itertools
import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from webdataset.writer import ShardWriter

from ...errors import SampleError
from ...files import check_own, folder_of_results, whole_file, write_json
from ...order.selection import LossWeights, Selection
from ...shards.fields import read_value, sample_key
from ...shards.manifest import SCHEMA, Manifest
from ...shards.reader import RawSample, open_shard
from ...shards.transport import FetchError, Transport
from ...urls import base_name
from ..engine import Engine, Serial
from ..runner import Progress, silent
from .keep_list import KeepList, weights_of

ABOUT, MANIFEST, LIST = "repack.json", "manifest.parquet", ".list"
NEW = ("unreadable", "no_key")


@dataclass(frozen=True)
class Copied(LossWeights):
    """Each sample once, with the list's key at hand."""

    keeps_keys = True


@dataclass(frozen=True)
class Repack:
    """The tars of a keep-list.

    Args:
        keep: the list.
        manifest: its shards.
        out: folder of the new ones.
        samples_per_shard: of every new tar but each source's last.
        key_fields: JSON field that identifies a sample, by source.
        transport: fetches remote shards.
    """

    keep: Path
    manifest: Manifest
    out: Path
    samples_per_shard: int
    key_fields: Mapping[str, str]
    transport: Transport = field(default_factory=Transport)

    def open(self, ignores_weights: bool) -> None:
        """Begins, or goes on with a folder of the same list, shards and size.

        Raises:
            ValueError: the list has weights other than 1 and they are not ignored, or is of other
                shards; the folder holds tars or other files of something else.
        """
        if self.samples_per_shard < 1:
            raise ValueError(f"--samples_per_shard {self.samples_per_shard}: give 1 or more")
        keep = KeepList(self.keep)
        weighted = keep.weighted and any((weights_of(b) != 1).any() for b in keep.batches())
        if weighted and not ignores_weights:
            raise ValueError(
                f"the keep-list '{keep.path}' has weights, and tars hold every sample once: train "
                "with the list (data.keep_lists) to use them, or give --ignore_weights"
            )
        check_own(self.out, ABOUT)
        with folder_of_results(self.out):
            try:
                fingerprint = self._selection.fingerprint
            except ValueError:
                shutil.rmtree(self.out / LIST, ignore_errors=True)
                raise
        about = {
            "list": fingerprint,
            "manifest": self.manifest.fingerprint,
            "samples_per_shard": self.samples_per_shard,
        }
        path = self.out / ABOUT
        if not path.exists():
            write_json(path, about)
        stored = json.loads(path.read_text(encoding="utf-8"))
        if other := [name for name, value in about.items() if stored.get(name) != value]:
            raise ValueError(
                f"'{self.out}' holds tars of another {', '.join(other)}; choose another --out"
            )
        for url in self.manifest.check_files().values():
            self.transport.require(url)

    def run(self, engine: Engine | None = None, progress: Progress = silent) -> Counter[str]:
        """Writes the tars that are missing, then the manifest.

        Returns:
            Samples that were copied (`successes`), that could not be read (`unreadable`), and that
            have no key in their JSON (`no_key`).

        Raises:
            ValueError: a shard cannot be fetched.
        """
        tars = self.tars
        results = (engine or Serial()).map(self.write, range(len(tars)))
        counts = [each["successes"] for each in progress(results, len(tars), "writing")]
        rows = {
            "source": [source for source, _, _, _ in tars],
            "url": [f"{source}/{number:05d}.tar" for source, number, _, _ in tars],
            "num_samples": counts,
            "num_bytes": [self.path(tar).stat().st_size for tar in range(len(tars))],
            "sha256": [""] * len(tars),
        }
        Manifest(pa.table(rows, SCHEMA), self.out).save(self.out / MANIFEST)
        total: Counter[str] = Counter()
        for tar in range(len(tars)):
            total.update(self.write(tar))
        return total

    @cached_property
    def tars(self) -> list[tuple[str, int, int, int]]:
        """Source, number, and the first and one past the last kept sample of each new tar."""
        tars = []
        for source, ends in self._ends.items():
            firsts = range(0, int(ends[-1]), self.samples_per_shard)
            for number, first in enumerate(firsts):
                last = min(first + self.samples_per_shard, int(ends[-1]))
                tars.append((source, number, first, last))
        return tars

    def path(self, tar: int) -> Path:
        """The file of a new tar."""
        source, number, _, _ = self.tars[tar]
        return self.out / source / f"{number:05d}.tar"

    def write(self, tar: int) -> dict[str, int]:
        """Writes a new tar unless it is there; returns its statistics."""
        path = self.path(tar)
        stats = _stats_of(path)
        if stats.exists():
            return json.loads(stats.read_text(encoding="utf-8"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part, open(part, "wb") as stream:
            writer = ShardWriter(
                "%05d.tar",
                maxcount=self.samples_per_shard,
                maxsize=math.inf,
                verbose=0,
                opener=lambda _: stream,  # a path with a percent sign in it is no pattern
                encoder=False,
                mtime=0.0,
                format="PAX_FORMAT",
            )
            with writer:
                counts = self._copy(tar, writer)
        # Last: it says that the tar is there.
        write_json(stats, counts)
        return counts

    def _copy(self, tar: int, writer: ShardWriter) -> dict[str, int]:
        source, _, first, last = self.tars[tar]
        shards, ends = self._shards[source], self._ends[source]
        counts = {"successes": 0, **dict.fromkeys(NEW, 0)}
        names: set[str] = set()
        at = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            shard, end = int(shards[at]), min(last, int(ends[at]))
            start = int(ends[at - 1]) if at else 0
            ordinals = np.arange(first - start, end - start)
            indices = self._selection.resolve(np.array(0), np.array(shard), ordinals)[0]
            keys = self._selection.keys(shard, ordinals)
            name = base_name(self.manifest.urls[shard])
            try:
                with open_shard(self.manifest, shard, self.transport) as reader:
                    for index, key in zip(indices.tolist(), keys.tolist(), strict=True):
                        try:
                            sample = reader.read(0, index)
                            self._check(sample, source, name, index, key)
                        except SampleError:
                            counts["unreadable"] += 1
                            continue
                        counts["no_key"] += not self._has_key(sample, source)
                        writer.write(_named(sample, names, Path(self.manifest.urls[shard]).stem))
                        counts["successes"] += 1
            except FetchError as error:
                raise ValueError(f"{error}; start again when it can") from error
            first, at = end, at + 1
        return counts

    def _check(self, sample: RawSample, source: str, shard: str, index: int, key: int) -> None:
        """Refuses a sample that is not the list's: another pool may have a shard of that name."""
        if sample_key(sample, source, shard, self.key_fields[source]) != key:
            raise ValueError(
                f"sample {index} of the shard {shard} ({source}) is not the one of that number in "
                f"the keep-list '{self.keep}': the list is of another pool with such a shard "
                "(counterpoint keep locate moves it), or its keys are of another --key_field"
            )

    def _has_key(self, sample: RawSample, source: str) -> bool:
        try:
            return bool(read_value(sample, "json", self.key_fields[source]))
        except SampleError:
            return False

    @cached_property
    def _selection(self) -> Selection:
        path = KeepList(self.keep).path
        return Selection.compile([path], self.manifest, self.out / LIST, 0, Copied())

    @cached_property
    def _shards(self) -> dict[str, np.ndarray]:
        """The old shards of each source that have kept samples."""
        kept = self._selection.counts.at(0, np.arange(len(self.manifest.counts)))
        ids = self.manifest.source_ids
        shards = {
            name: np.flatnonzero((ids == number) & (kept > 0))
            for number, name in enumerate(self.manifest.sources)
        }
        return {name: own for name, own in shards.items() if len(own)}

    @cached_property
    def _ends(self) -> dict[str, np.ndarray]:
        """Where each of these ends among the kept samples of its source."""
        return {
            name: np.cumsum(self._selection.counts.at(0, shards))
            for name, shards in self._shards.items()
        }


def _stats_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_stats.json")


def _named(sample: RawSample, names: set[str], shard: str) -> RawSample:
    """Returns a sample under a name that the tar does not have yet."""
    name = str(sample["__key__"])
    if name in names:
        # Two old shards may use a name; next to each other, these would be one sample.
        folder, slash, base = name.rpartition("/")
        tries = (f"{folder}{slash}{shard}-{base}-{n}".removesuffix("-0") for n in itertools.count())
        name = next(new for new in tries if new not in names)
    names.add(name)
    return {**sample, "__key__": name}
