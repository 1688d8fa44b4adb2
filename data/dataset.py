"""A step number to this rank's batch.

In: the plan, the schedule, the reader, a tokenizer and a transform. Out: `dict[str, Tensor]`. The
batch is a function of the step alone: whichever worker makes it, and however often.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from .decode import decode_caption, decode_image, find_image, sample_key
from .errors import SampleError
from .hashing import text_hash
from .manifest import Manifest
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
# Decoding many pictures and then transforming them all takes about two thirds of the time of
# taking turns, which keeps throwing the code of one out of the processor's caches. Bounded,
# because a batch of photographs decoded in full does not fit into memory as easily.
MAX_PENDING_BYTES = 16 << 20

Place = tuple[int, int, int]


@dataclass(frozen=True)
class Sample:
    """One decoded pair: picture uint8 [3, H, W], caption, key and `CAUSES` code."""

    image: Tensor
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

    def load(self, places: Iterable[Place]) -> list[Sample]:
        """Loads samples.

        Args:
            places: (epoch, shard, ordinal) of each.

        Returns:
            Samples whose pictures are transformed: uint8 [3, image_size, image_size].
        """
        done: list[Sample] = []
        pending: list[tuple[int, Sample]] = []
        num_bytes = 0
        for epoch, shard, ordinal in places:
            sample = self.decode(shard, ordinal)
            pending.append((epoch, sample))
            num_bytes += sample.image.numel()
            if num_bytes > MAX_PENDING_BYTES:
                done += [self._transformed(*item) for item in pending]
                pending, num_bytes = [], 0
        return done + [self._transformed(*item) for item in pending]

    def decode(self, shard: int, ordinal: int) -> Sample:
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
                image = decode_image(find_image(raw))
            except SampleError as error:
                status = status or error.code
                continue
            return Sample(image, text, key, status)
        blank = torch.full((3, self.image_size, self.image_size), 255, dtype=torch.uint8)
        return Sample(blank, "", 0, status)

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

    def _transformed(self, epoch: int, sample: Sample) -> Sample:
        """Applies the transform with the sample's own randomness.

        The epoch and the key determine it: a sample comes up once an epoch.
        """
        words = np.array([text_hash(self.seed, epoch), sample.key], dtype=np.int64)
        rng = np.random.Generator(np.random.Philox(key=words.view(np.uint64)))
        image = self.transform(sample.image, self.image_size, rng)
        return replace(sample, image=image)

    def _key(self, raw: RawSample, shard: int) -> int:
        source = self.manifest.sources[self.manifest.source_ids[shard]]
        name = self.manifest.urls[shard].rpartition("/")[2]
        return sample_key(raw, source, name, self.key_field)


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
        positions = self.schedule.positions(step)
        lanes = self.plan.lane(positions)
        positions = self.schedule.share(positions, lanes, self.rank, self.world_size)
        epochs, shards, ordinals = self.plan.locate(positions)
        places = zip(epochs.tolist(), shards.tolist(), ordinals.tolist(), strict=True)
        batch = collate(self.loader.load(places))
        texts = batch.pop("texts")
        ids, lengths = self.tokenize(texts, self.context_length)
        sources = self.loader.manifest.source_ids[shards]
        return {
            **batch,
            "text": ids,
            "text_length": lengths,
            "source": torch.from_numpy(sources),
            "shard": torch.from_numpy(shards),
        }


def collate(samples: Sequence[Sample]) -> dict:
    """Stacks samples: `image` uint8 [b, 3, H, W], `key` and `status` int64 [b], `texts` a list."""
    first = samples[0].image
    # Filling one buffer leaves contiguous memory whatever layout the transform returned.
    images = torch.empty((len(samples), *first.shape), dtype=torch.uint8)
    for row, sample in enumerate(samples):
        images[row] = sample.image
    return {
        "image": images,
        "key": torch.tensor([sample.key for sample in samples], dtype=torch.int64),
        "status": torch.tensor([sample.status for sample in samples], dtype=torch.int64),
        "texts": [sample.text for sample in samples],
    }


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
