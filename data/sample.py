"""Places in the plan to samples: pictures, texts, keys and joined rows.

In: (epoch, shard, ordinal) of each. Out: batch entries, the same whoever makes them: what is random
comes from (seed, epoch, key, name of the view or text). A sample that cannot be used is replaced by
a good one by a rule that depends on the manifest and the keep-list alone, and says why.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .decode import find_image, sample_key
from .errors import SampleError
from .hashing import text_hash
from .manifest import Manifest
from .picture import Picture, Pixels
from .reader import RawSample, ShardReader
from .recipe import Recipe
from .selection import Selection
from .urls import base_name

# Replacements are looked for near by first: the shard is open. Bad samples come in runs, so a few
# tries suffice to tell a bad sample from a bad shard.
TRIES_IN_SHARD = 16
SHARDS_TRIED = 32
TRIES_IN_OTHER_SHARD = 4
# Many samples are read and decided on first, then many pictures are decoded, then these are
# transformed: taking turns keeps throwing the code of one out of the processor's caches. Bounded,
# because a batch of photographs does not fit into memory as easily, as files or as pixels.
MAX_READ_BYTES = 64 << 20
MAX_PENDING_BYTES = 16 << 20

# Pixels of a picture that is not there.
WHITE = 255

# Shards whose names are remembered.
MAX_KNOWN = 4096

Place = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One sample: its views are decided on.

    Attributes:
        pictures: What its views are made of: its own picture under None, further ones that it has
            under the member's name.
        params: What each view's transform has drawn.
        texts: Captions by batch entry; "" where there is none.
        rows: Joined rows by batch entry.
        key: Its identity.
        status: `CAUSES` code of the sample that it replaces; 0 for none.
        weight: From the keep-list.
    """

    pictures: dict[str | None, Picture]
    params: dict[str, np.ndarray]
    texts: dict[str, str]
    rows: dict[str, Tensor]
    key: int
    status: int
    weight: float

    @property
    def num_bytes(self) -> int:
        """Size of the pixels that are kept."""
        return sum(picture.num_bytes for picture in self.pictures.values())

    @property
    def file_bytes(self) -> int:
        """Size of the files that are kept."""
        return sum(picture.file_bytes for picture in self.pictures.values())


class SampleLoader:
    """Loads samples; a bad one is replaced by a good one, by rule.

    Args:
        manifest: The shards.
        reader: Their bytes.
        recipe: What to make of them.
        selection: The kept samples, which ordinals then count; None keeps all.
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
        self.counts: np.ndarray = manifest.counts if selection is None else selection.counts
        self._randomness = Randomness()
        # Of the shards in use: looking their names up takes as long as reading a sample.
        self._known: dict[int, tuple[str, str]] = {}

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
        views = self.recipe.views
        images = {name: new_images(len(places), view.side) for name, view in views.items()}
        choices = [self._choices(*place) for place in places]
        samples: list[Sample] = []
        done = num_bytes = 0
        for choice in choices:
            samples.append(next(choice))
            num_bytes += samples[-1].file_bytes
            if num_bytes > MAX_READ_BYTES or len(samples) == len(places):
                self._finish(samples, choices, images, done)
                done, num_bytes = len(samples), 0
        batch: dict[str, Tensor] = dict(images)
        for name, view in views.items():
            if view.transform.columns:
                params = np.stack([sample.params[name] for sample in samples])
                batch[f"{name}.augmentation"] = torch.from_numpy(params)
            if view.member is not None:
                there = [view.member in sample.pictures for sample in samples]
                batch[f"{name}.present"] = torch.tensor(there)
        for name in samples[0].rows:
            batch[name] = torch.stack([sample.rows[name] for sample in samples])
        batch["key"] = torch.tensor([sample.key for sample in samples], dtype=torch.int64)
        batch["status"] = torch.tensor([sample.status for sample in samples], dtype=torch.int64)
        if self.selection is not None and self.selection.has_weights:
            batch["weight"] = torch.tensor([sample.weight for sample in samples])
        texts = {name: [sample.texts[name] for sample in samples] for name in self.recipe.texts}
        return batch, texts

    def _finish(
        self,
        samples: list[Sample],
        choices: Sequence[Iterator[Sample]],
        images: Mapping[str, Tensor],
        first: int,
    ) -> None:
        """Decodes the samples from `first` on and fills their rows of each view.

        Those that turn out to be damaged are replaced in the list by what else can stand there.
        """
        done, num_bytes = first, 0
        for row in range(first, len(samples)):
            samples[row] = self._decoded(samples[row], choices[row])
            num_bytes += samples[row].num_bytes
            if num_bytes > MAX_PENDING_BYTES or row + 1 == len(samples):
                for ready in range(done, row + 1):
                    self._transform(samples[ready], images, ready)
                done, num_bytes = row + 1, 0

    def decode(self, epoch: int, shard: int, ordinal: int) -> Sample:
        """Decodes a sample, or the first good one of `candidates`; `status` tells why."""
        choices = self._choices(epoch, shard, ordinal)
        return self._decoded(next(choices), choices)

    def _choices(self, epoch: int, shard: int, ordinal: int) -> Iterator[Sample]:
        """Yields what can stand at a place: its sample, then the others of `candidates`.

        Their pixels have not been decoded. The `status` says what was wrong with those passed over
        here. The last is blank, its texts empty: the error budget, which sees every failure, is
        what stops such a run.
        """
        status = 0
        for place in self.candidates(shard, ordinal):
            try:
                yield self._read(epoch, *place, status)
            except SampleError as error:
                status = status or error.code
        pictures: dict[str | None, Picture] = {
            None: Pixels(torch.full((3, 2, 2), WHITE, dtype=torch.uint8))
        }
        rows = self._joined(shard, epoch, 0)
        params = self._draw(pictures, rows, epoch, 0)
        yield Sample(pictures, params, dict.fromkeys(self.recipe.texts, ""), rows, 0, status, 1.0)

    def _decoded(self, sample: Sample, others: Iterator[Sample]) -> Sample:
        """Decodes what the views need of a sample, or of the first of the others that is whole."""
        while True:
            try:
                for name, view in self.recipe.views.items():
                    picture = sample.pictures.get(view.member)
                    if picture is not None:
                        params = sample.params[name]
                        picture.pixels(view.transform.factor(picture, view.side, params))
                return sample
            except SampleError as error:
                # What was wrong first is what counts.
                sample = replace(next(others), status=sample.status or error.code)

    def candidates(self, shard: int, ordinal: int) -> Iterator[tuple[int, int]]:
        """Yields the sample itself, its followers in the shard, then samples of the next shards.

        A function of the manifest and the keep-list alone. The next shards are of the same source.
        """
        count = int(self.counts[shard])
        for step in range(min(TRIES_IN_SHARD, count)):
            yield shard, (ordinal + step) % count
        same = self.manifest.source_ids == self.manifest.source_ids[shard]
        usable = np.flatnonzero(same & (self.counts > 0))
        usable = np.roll(usable, -int(np.searchsorted(usable, shard, side="right")))
        for other in usable[usable != shard][:SHARDS_TRIED].tolist():
            count = int(self.counts[other])
            for step in range(min(TRIES_IN_OTHER_SHARD, count)):
                yield other, (ordinal + step) % count

    def _read(self, epoch: int, shard: int, ordinal: int, status: int) -> Sample:
        """Reads one sample: whatever can be wrong with it but its pixels comes out here.

        Raises:
            SampleError: It cannot be used.
        """
        weight = 1.0
        if self.selection is not None:
            places, weights = self.selection.resolve(np.array([shard]), np.array([ordinal]))
            ordinal, weight = int(places[0]), float(weights[0])
        raw = self.reader.read(shard, ordinal)
        source, file = self._names(shard)
        key = sample_key(raw, source, file, self.recipe.key_fields[source])
        rows = self._joined(shard, epoch, key)
        texts = {
            name: self._text(raw, name, source, rows, epoch, key) for name in self.recipe.texts
        }
        pictures = self._pictures(raw)
        params = self._draw(pictures, rows, epoch, key)
        return Sample(pictures, params, texts, rows, key, status, weight)

    def _pictures(self, raw: RawSample) -> dict[str | None, Picture]:
        """Opens every picture that a view is of; all but the sample's own may be absent."""
        pictures: dict[str | None, Picture] = {None: Picture.open(find_image(raw))}
        for member in {view.member for view in self.recipe.views.values()} - {None}:
            try:
                data = find_image(raw, member)
            except SampleError:
                continue
            pictures[member] = Picture.open(data)
        return pictures

    def _draw(
        self,
        pictures: Mapping[str | None, Picture],
        rows: Mapping[str, Tensor],
        epoch: int,
        key: int,
    ) -> dict[str, np.ndarray]:
        """Decides on every view.

        The epoch, the key and the view's name determine it: a sample comes up once an epoch.
        """
        params: dict[str, np.ndarray] = {}
        for name, view in self.recipe.views.items():
            # A picture that is not there draws as the sample's own: batches have a row for it.
            picture = pictures.get(view.member, pictures[None])
            found = view.replayed(params, rows)
            if found is None:
                rng = self._randomness.start(stream(self.recipe.seed, epoch, name), key)
                others = [params[other] for other in view.transform.around]
                found = view.transform.draw(picture.height, picture.width, rng, others)
            params[name] = found
        return params

    def _transform(self, sample: Sample, images: Mapping[str, Tensor], row: int) -> None:
        """Fills a row of each view."""
        for name, view in self.recipe.views.items():
            view_params = sample.params[name]
            picture = sample.pictures.get(view.member)
            if picture is None:
                images[name][row] = WHITE
            else:
                images[name][row] = view.transform.apply(picture, view.side, view_params)
        for picture in sample.pictures.values():
            picture.forget()

    def _text(
        self,
        raw: RawSample,
        name: str,
        source: str,
        rows: Mapping[str, Tensor],
        epoch: int,
        key: int,
    ) -> str:
        policy = self.recipe.texts[name][source]
        draw = uniform(self.recipe.seed, epoch, name, key)
        stored = self.recipe.caption_same_as if name == "text" else None
        if stored is not None and rows[f"{stored.partition('.')[0]}.present"]:
            draw = float(rows[stored])
        try:
            return policy(raw, draw)
        except SampleError as error:
            # Only the main caption has to be there; batches mark which of the others are.
            if name != "text" and error.cause == "no_caption":
                return ""
            raise

    def _joined(self, shard: int, epoch: int, key: int) -> dict[str, Tensor]:
        """Returns the sidecars' rows of a sample by batch entry; zeros where there is none."""
        rows: dict[str, Tensor] = {}
        for name, sidecar in self.recipe.sidecars.items():
            draw = uniform(self.recipe.seed, epoch, name, key)
            found = sidecar.row(*self._names(shard), key, draw)
            rows |= {f"{name}.{entry}": values for entry, values in found.items()}
        return rows

    def _names(self, shard: int) -> tuple[str, str]:
        """Returns the source and the file name of a shard."""
        names = self._known.get(shard)
        if names is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            source = self.manifest.sources[self.manifest.source_ids[shard]]
            names = self._known[shard] = source, base_name(self.manifest.urls[shard])
        return names


def new_images(number: int, side: int) -> Tensor:
    """Returns memory for pictures: uint8 [n, 3, side, side], channels last as they are decoded.

    In a worker it is memory that the training process can read too: filled there, the batch is not
    copied once more on its way. torch's own collation does the same.
    """
    shape = (number, side, side, 3)
    if get_worker_info() is None:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        storage = torch.UntypedStorage._new_shared(math.prod(shape))
        images = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    return images.permute(0, 3, 1, 2)


class Randomness:
    """One generator that starts over for every sample: a new one would take ten times as long."""

    def __init__(self):
        self._bits = np.random.Philox(key=np.zeros(2, dtype=np.uint64))
        self._generator = np.random.Generator(self._bits)
        self._fresh = self._bits.state

    def start(self, *words: int) -> np.random.Generator:
        """Returns the generator as if just made from two signed 64-bit words; valid until next."""
        self._fresh["state"]["key"] = np.array(words, dtype=np.int64).view(np.uint64)
        self._bits.state = self._fresh
        return self._generator


@lru_cache(maxsize=64)
def stream(seed: int, epoch: int, view: str) -> int:
    """Returns the half of a view's randomness that is the same for a whole epoch."""
    return text_hash(seed, epoch) if view == "image" else text_hash(seed, epoch, view)


def uniform(*parts: object) -> float:
    """Returns a number in [0, 1) that depends on the parts alone."""
    return (text_hash(*parts) & ((1 << 53) - 1)) / (1 << 53)
