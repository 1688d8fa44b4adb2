"""Loads samples: images, texts, keys and joined rows.

In: (epoch, shard, ordinal) of each. Out: batch entries, the same from any worker: all randomness
comes from (seed, epoch, key, name of the view or text). An unusable sample is replaced by a good
one, with its cause in `status`, by a rule that depends on the manifest and the keep-list alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .errors import SampleError
from .order.counts import FixedCounts
from .order.selection import Selection
from .recipe import Recipe
from .render import Renderer, Sample, uniform
from .shards.fields import sample_key
from .shards.manifest import Manifest
from .shards.reader import ShardReader
from .urls import base_name

# Replacements come from the same shard first: it is open. Bad samples come in runs, so a few tries
# suffice to distinguish a bad sample from a bad shard.
TRIES_IN_SHARD = 16
SHARDS_TRIED = 32
TRIES_IN_OTHER_SHARD = 4
# Many samples are read first, then many images are decoded, then transformed: alternating evicts
# the code of each stage from the processor's caches. Bounded, because a batch of photographs may
# not fit into memory, as files or as pixels.
MAX_READ_BYTES = 64 << 20
MAX_PENDING_BYTES = 16 << 20

# Shards whose names are cached.
MAX_NAMES = 4096

Place = tuple[int, int, int]


class SampleLoader:
    """Loads samples; a bad one is replaced by a good one, by rule.

    Args:
        manifest: the shards.
        reader: reads the shards.
        recipe: views and texts of every sample.
        selection: the kept samples, which ordinals then count; None: all.
    """

    def __init__(
        self,
        manifest: Manifest,
        reader: ShardReader,
        recipe: Recipe,
        selection: Selection | None = None,
    ):
        self.manifest = manifest
        self.reader = reader
        self.recipe = recipe
        self.selection = selection
        self.counts = FixedCounts(manifest.counts) if selection is None else selection.counts
        self.renderer = Renderer(recipe)
        # For the shards in use: looking up their names takes as long as reading a sample.
        self._name_cache: dict[int, tuple[str, str]] = {}

    def listed(self) -> "SampleLoader":
        """Returns a loader of all listed samples, where some only come in an epoch."""
        if self.selection is None:
            return self
        return SampleLoader(self.manifest, self.reader, self.recipe, self.selection.listed())

    def load(self, places: Sequence[Place]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
        """Loads samples.

        Args:
            places: (epoch, shard, ordinal among the kept) of each.

        Returns:
            Batch entries: each view uint8 [n, 3, size, size] and its augmentation float64 [n, p],
            `present` bool [n] of views that samples may lack, `key` and `status` int64 [n],
            `weight` float32 [n] if the keep-list has any, joined rows; and the texts of each text
            entry.
        """
        images = self.renderer.new_images(len(places))
        choices = [self._choices(*place) for place in places]
        samples: list[Sample] = []
        done = num_bytes = 0
        for choice in choices:
            samples.append(next(choice))
            num_bytes += samples[-1].file_bytes
            if num_bytes > MAX_READ_BYTES or len(samples) == len(places):
                self._finish(samples, choices, images, done)
                done, num_bytes = len(samples), 0
        batch, texts = self.renderer.batch(samples, images)
        if self.selection is not None and self.selection.has_weights:
            batch["weight"] = torch.tensor([sample.weight for sample in samples])
        return batch, texts

    def _finish(
        self,
        samples: list[Sample],
        choices: Sequence[Iterator[Sample]],
        images: Mapping[str, Tensor],
        first: int,
    ) -> None:
        """Decodes the samples from `first` on and fills their rows of each view.

        Damaged ones are replaced in the list by their next candidates.
        """
        done, num_bytes = first, 0
        for row in range(first, len(samples)):
            samples[row] = self._decoded(samples[row], choices[row])
            num_bytes += samples[row].num_bytes
            if num_bytes > MAX_PENDING_BYTES or row + 1 == len(samples):
                for ready in range(done, row + 1):
                    self.renderer.transform(samples[ready], images, ready)
                done, num_bytes = row + 1, 0

    def decode(self, epoch: int, shard: int, ordinal: int) -> Sample:
        """Decodes a sample, or the first good one of `candidates`; `status` has the cause."""
        choices = self._choices(epoch, shard, ordinal)
        return self._decoded(next(choices), choices)

    def _choices(self, epoch: int, shard: int, ordinal: int) -> Iterator[Sample]:
        """Yields a sample, then the others of `candidates`, undecoded.

        The `status` is the cause of the first one skipped here. The last is blank, its texts empty:
        the error budget, which counts every failure, stops such a run.
        """
        status = 0
        for place in self.candidates(epoch, shard, ordinal):
            try:
                yield self._read(epoch, *place, status)
            except SampleError as error:
                status = status or error.code
        yield self.renderer.blank(epoch, self._joined(shard, epoch, 0), status)

    def _decoded(self, sample: Sample, others: Iterator[Sample]) -> Sample:
        """Decodes a sample, or the first undamaged one of `others`."""
        while True:
            try:
                self.renderer.decode(sample)
                return sample
            except SampleError as error:
                # The first cause counts.
                sample = replace(next(others), status=sample.status or error.code)

    def candidates(self, epoch: int, shard: int, ordinal: int) -> Iterator[tuple[int, int]]:
        """Yields the sample itself, its followers in the shard, then samples of the next shards.

        A function of the manifest, the keep-list and, where weights are drawn anew, the epoch. The
        next shards are of the same source.
        """
        count = int(self.counts.at(epoch, np.array([shard]))[0])
        for step in range(min(TRIES_IN_SHARD, count)):
            yield shard, (ordinal + step) % count
        same = np.flatnonzero(self.manifest.source_ids == self.manifest.source_ids[shard])
        counts = self.counts.at(epoch, same)
        usable = np.flatnonzero((counts > 0) & (same != shard))
        usable = np.roll(usable, -int(np.searchsorted(same[usable], shard)))
        for other in usable[:SHARDS_TRIED].tolist():
            count = int(counts[other])
            for step in range(min(TRIES_IN_OTHER_SHARD, count)):
                yield int(same[other]), (ordinal + step) % count

    def _read(self, epoch: int, shard: int, ordinal: int, status: int) -> Sample:
        """Reads one sample and checks all but its pixels.

        Raises:
            SampleError: it cannot be used.
        """
        weight = 1.0
        if self.selection is not None:
            place = np.array([epoch]), np.array([shard]), np.array([ordinal])
            ordinals, weights = self.selection.resolve(*place)
            ordinal, weight = int(ordinals[0]), float(weights[0])
        raw = self.reader.read(shard, ordinal)
        source, file = self._names(shard)
        key = sample_key(raw, source, file, self.recipe.key_fields[source])
        rows = self._joined(shard, epoch, key)
        for name, sidecar in self.recipe.sidecars.items():
            if sidecar.missing == "replaced" and not rows[f"{name}.present"]:
                raise SampleError("no_row", f"the sidecar '{name}' has no row of key {key}")
        return self.renderer.prepare(raw, source, key, epoch, rows, status, weight)

    def _joined(self, shard: int, epoch: int, key: int) -> dict[str, Tensor]:
        """Returns the sidecars' rows of a sample by batch entry; zeros if missing."""
        rows: dict[str, Tensor] = {}
        for name, sidecar in self.recipe.sidecars.items():
            draw = uniform(self.recipe.seed, epoch, name, key)
            row = sidecar.row(*self._names(shard), key, draw)
            rows |= {f"{name}.{entry}": values for entry, values in row.items()}
        return rows

    def _names(self, shard: int) -> tuple[str, str]:
        """Returns the source and the file name of a shard."""
        names = self._name_cache.get(shard)
        if names is None:
            if len(self._name_cache) >= MAX_NAMES:
                self._name_cache.clear()
            source = self.manifest.sources[self.manifest.source_ids[shard]]
            names = self._name_cache[shard] = source, base_name(self.manifest.urls[shard])
        return names
