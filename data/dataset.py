"""A step number to this rank's batch.

In: the plan, the schedule, the reader, a tokenizer and a transform. Out: `dict[str, Tensor]`. The
batch is a function of the step alone: whichever worker makes it, and however often.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, get_worker_info

from .decode import decode_caption, find_image, sample_key
from .errors import SampleError
from .hashing import text_hash
from .manifest import Manifest
from .picture import Picture, Pixels
from .plan import Plan
from .reader import RawSample, ShardReader
from .schedule import Schedule
from .transforms import Transform

Batch = dict[str, Tensor]
TokenizeTexts = Callable[[list[str], int], tuple[Tensor, Tensor]]

# Replacements are looked for near by first: the shard is open. Bad samples come in runs, so a few
# tries suffice to tell a bad sample from a bad shard.
TRIES_IN_SHARD = 16
SHARDS_TRIED = 32
TRIES_IN_OTHER_SHARD = 4
# Decoding many small pictures and then transforming them all takes about two thirds of the time of
# taking turns, which keeps throwing the code of one out of the processor's caches. Large pictures
# take turns: there it is their pixels that should not leave the caches before they are resized.
MAX_PENDING_BYTES = 1 << 20

Place = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One pair: a picture that is decoded, caption, key and `CAUSES` code.

    Attributes:
        params: What the transform has drawn for the picture.
    """

    picture: Picture
    params: np.ndarray
    text: str
    key: int
    status: int


class SampleLoader:
    """(epoch, shard, ordinal) to a sample; a bad one is replaced by a good one, by rule.

    Args:
        manifest: The shards.
        transform: Applied to the picture.
        seed: Of the augmentations.
        image_size: Side in pixels.
        key_field: JSON field that identifies a sample.
        caption: Caption fields, see `decode_caption`.
    """

    def __init__(
        self,
        manifest: Manifest,
        transform: Transform,
        seed: int,
        image_size: int,
        key_field: str = "key",
        caption: Sequence[str] = ("txt",),
    ):
        self.manifest = manifest
        self.reader = ShardReader(manifest.urls)
        self.transform = transform
        self.seed = seed
        self.image_size = image_size
        self.key_field = key_field
        self.caption = tuple(caption)
        self._randomness = Randomness()
        # Source and file name of the shards met so far: looking them up takes as long as reading.
        self._names: dict[int, tuple[str, str]] = {}

    def load(self, places: Sequence[Place]) -> tuple[Tensor, list[Sample]]:
        """Loads samples.

        Args:
            places: (epoch, shard, ordinal) of each.

        Returns:
            The transformed pictures, uint8 [n, 3, image_size, image_size], and the samples.
        """
        images = new_batch((len(places), 3, self.image_size, self.image_size))
        samples: list[Sample] = []
        done = num_bytes = 0
        for place in places:
            samples.append(self.decode(*place))
            num_bytes += samples[-1].picture.num_bytes
            if num_bytes > MAX_PENDING_BYTES or len(samples) == len(places):
                for row in range(done, len(samples)):
                    images[row] = self._transformed(samples[row])
                done, num_bytes = len(samples), 0
        return images, samples

    def decode(self, epoch: int, shard: int, ordinal: int) -> Sample:
        """Decodes a sample, or the first good one of `candidates`; `status` tells why.

        If none is good the picture is blank and the caption empty: the error budget, which sees
        every failure, is what stops such a run.
        """
        status = 0
        for place in self.candidates(shard, ordinal):
            try:
                raw = self.reader.read(*place)
                text = decode_caption(raw, self.caption)
                key = self._key(raw, place[0])
                picture = Picture.open(find_image(raw))
                params = self.draw(picture, epoch, key)
            except SampleError as error:
                status = status or error.code
                continue
            return Sample(picture, params, text, key, status)
        blank = torch.full((3, self.image_size, self.image_size), 255, dtype=torch.uint8)
        return Sample(Pixels(blank), self.draw(Pixels(blank), epoch, 0), "", 0, status)

    def draw(self, picture: Picture, epoch: int, key: int) -> np.ndarray:
        """Draws the view with the sample's own randomness, and decodes what it needs.

        The epoch and the key determine it: a sample comes up once an epoch.

        Raises:
            SampleError: The picture is damaged.
        """
        rng = self._randomness.start(epoch_word(self.seed, epoch), key)
        params = self.transform.draw(picture.height, picture.width, rng)
        picture.pixels(self.transform.factor(picture, self.image_size, params))
        return params

    def candidates(self, shard: int, ordinal: int) -> Iterator[tuple[int, int]]:
        """Yields the sample itself, its followers in the shard, then samples of the next shards.

        A function of the manifest alone. The next shards are those of the same source.
        """
        counts = self.manifest.counts
        for step in range(min(TRIES_IN_SHARD, int(counts[shard]))):
            yield shard, (ordinal + step) % int(counts[shard])
        same = self.manifest.source_ids == self.manifest.source_ids[shard]
        usable = np.flatnonzero(same & (counts > 0))
        usable = np.roll(usable, -int(np.searchsorted(usable, shard, side="right")))
        for other in usable[usable != shard][:SHARDS_TRIED].tolist():
            for step in range(min(TRIES_IN_OTHER_SHARD, int(counts[other]))):
                yield other, (ordinal + step) % int(counts[other])

    def _transformed(self, sample: Sample) -> Tensor:
        image = self.transform.apply(sample.picture, self.image_size, sample.params)
        sample.picture.forget()
        return image

    def _key(self, raw: RawSample, shard: int) -> int:
        names = self._names.get(shard)
        if names is None:
            source = self.manifest.sources[self.manifest.source_ids[shard]]
            names = self._names[shard] = source, self.manifest.urls[shard].rpartition("/")[2]
        return sample_key(raw, *names, self.key_field)


class StepDataset(Dataset):
    """Maps a step to this rank's batch.

    Args:
        plan: Positions to samples.
        schedule: Steps to positions.
        loader: Samples to pictures and captions.
        tokenize: `(texts, context_length)` to (ids [n, context_length], lengths [n]).
        context_length: Tokens a caption.
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(
        self,
        plan: Plan,
        schedule: Schedule,
        loader: SampleLoader,
        tokenize: TokenizeTexts,
        context_length: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.plan = plan
        self.schedule = schedule
        self.loader = loader
        self.tokenize = tokenize
        self.context_length = context_length
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.schedule.total_steps

    def __getitem__(self, step: int) -> Batch:
        # As many threads in the training process as in a worker, so that sums of floats agree.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._batch(step)
        finally:
            torch.set_num_threads(num_threads)

    def _batch(self, step: int) -> Batch:
        positions = self.schedule.positions(step, self.rank, self.world_size)
        epochs, shards, ordinals = self.plan.locate(positions)
        places = list(zip(epochs.tolist(), shards.tolist(), ordinals.tolist(), strict=True))
        images, samples = self.loader.load(places)
        texts = [sample.text for sample in samples]
        ids, lengths = self.tokenize(texts, self.context_length)
        sources = self.loader.manifest.source_ids[shards]
        return {
            "image": images,
            "key": torch.tensor([sample.key for sample in samples], dtype=torch.int64),
            "status": torch.tensor([sample.status for sample in samples], dtype=torch.int64),
            "text": ids,
            "text_length": lengths,
            "source": torch.from_numpy(sources),
            "shard": torch.from_numpy(shards),
        }


def new_batch(shape: tuple[int, ...]) -> Tensor:
    """Returns uint8 memory for a batch, in a worker where the training process can read it too."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # Filled there, the batch is not copied once more on its way. torch's own collation does this.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


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
def epoch_word(seed: int, epoch: int) -> int:
    """Returns the half of a sample's randomness that is the same for a whole epoch."""
    return text_hash(seed, epoch)


class StepSampler(Sampler[int]):
    """Steps from the stored one to the last.

    Its length is that of the whole run, not of what remains: a trainer that resumes counts batches
    from the stored step on and would otherwise end the epoch early and start over.

    Args:
        first_step: Where to start.
        total_steps: One past the last step.
    """

    def __init__(self, first_step: int, total_steps: int):
        self.first_step = first_step
        self.total_steps = total_steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first_step, self.total_steps))

    def __len__(self) -> int:
        return self.total_steps
