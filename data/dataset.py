"""A step number to this rank's batch.

In: the plan, the run's steps, a sample loader and a tokenizer. Out: `dict[str, Tensor]`. The batch
is a function of the step alone: whichever worker makes it, and however often. A large batch is made
in parts by several workers, so that none of them holds many whole batches.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from .order.steps import Steps
from .refusals import Refusal, refusal
from .sample import SampleLoader
from .shards.prefetch import Prefetcher
from .text.syntax import WordReducer

Batch = dict[str, Tensor]
TokenizeTexts = Callable[[list[str], int], tuple[Tensor, Tensor]]
# What one worker makes at a time; a few of them wait in memory for each worker.
PART_BYTES = 64 << 20


class Order(Protocol):
    """Positions to samples: a `Plan` or a `MixedPlan`."""

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns epoch, shard and ordinal of each position."""
        ...

    def lane(self, positions: np.ndarray) -> np.ndarray:
        """Returns the lane of each position."""
        ...


class InParts(Protocol):
    """Batches of steps, each made in parts."""

    def __len__(self) -> int: ...

    def num_parts(self, step: int) -> int:
        """Returns how many parts make up this rank's batch of a step."""
        ...


class StepDataset(Dataset):
    """Maps a step, or (step, part), to this rank's batch or a part of it.

    Args:
        plan: positions to samples.
        steps: steps to positions.
        loader: places to samples.
        tokenize: `(texts, context_length)` to (ids [n, context_length], lengths [n]).
        context_length: tokens a caption.
        rank: of this process.
        world_size: number of processes.
        part_rows: samples of a part at most; by default as many as fit into 64 MiB.
        prefetcher: fetches the shards of coming steps.
        word_reducers: what shortens captions before they become tokens, by phase; None: nothing.
        own: tokenizer and context length of single text entries.
    """

    def __init__(
        self,
        plan: Order,
        steps: Steps,
        loader: SampleLoader,
        tokenize: TokenizeTexts,
        context_length: int,
        rank: int = 0,
        world_size: int = 1,
        part_rows: int | None = None,
        prefetcher: Prefetcher | None = None,
        word_reducers: Sequence[WordReducer | None] = (),
        own: Mapping[str, tuple[TokenizeTexts, int]] | None = None,
    ):
        self.plan = plan
        self.steps = steps
        self.loader = loader
        self.readers = {"text": (tokenize, context_length), **(own or {})}
        self.rank = rank
        self.world_size = world_size
        self.part_rows = part_rows or max(1, PART_BYTES // loader.recipe.bytes_per_sample)
        self.prefetcher = prefetcher
        self.word_reducers = word_reducers

    def __len__(self) -> int:
        return self.steps.total_steps

    def num_parts(self, step: int) -> int:
        """Returns how many parts make up this rank's batch of a step."""
        rows = self.steps.batch_size(step) // self.world_size
        return -(-rows // self.part_rows)

    def __getitem__(self, index: int | tuple[int, int]) -> Batch | Refusal:
        """Makes a batch, or a part; a worker returns a message to the user in its place."""
        try:
            return self._made(*(index if isinstance(index, tuple) else (index, None)))
        except ValueError as error:
            return refusal(error)

    def _made(self, step: int, part: int | None) -> Batch:
        # One worker of each rank fetches for all of them.
        if self.prefetcher and ((worker := get_worker_info()) is None or worker.id == 0):
            self.prefetcher.at(step)
        # As many threads in the training process as in a worker, so that sums of floats agree.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._batch(step, part)
        finally:
            torch.set_num_threads(num_threads)

    def positions(self, step: int) -> np.ndarray:
        """Returns this rank's positions at a step, ascending int64."""
        positions = self.steps.positions(step)
        if self.world_size == 1:
            return positions
        lanes = self.plan.lane(positions)
        return self.steps.deal(positions, lanes, self.rank, self.world_size)

    def shards(self, step: int) -> np.ndarray:
        """Returns the shards that this rank's batch of a step needs, int64, with repetitions."""
        return self.plan.locate(self.positions(step))[1]

    def _batch(self, step: int, part: int | None) -> Batch:
        positions = self.positions(step)
        if part is not None:
            positions = positions[part * self.part_rows : (part + 1) * self.part_rows]
        epochs, shards, ordinals = self.plan.locate(positions)
        places = list(zip(epochs.tolist(), shards.tolist(), ordinals.tolist(), strict=True))
        batch, texts = self.loader.load(places)
        phase = self.steps.phase(step)
        shortened = self.word_reducers[phase] if self.word_reducers else None
        batch |= self.tokenized(texts, shortened)
        return batch | {
            "source": torch.from_numpy(self.loader.manifest.source_ids[shards]),
            "shard": torch.from_numpy(shards),
        }

    def tokenized(self, texts: dict[str, list[str]], shortened: WordReducer | None = None) -> Batch:
        """Turns texts into ids and lengths, by batch entry; see `tokenize_texts`."""
        return tokenize_texts(texts, self.readers, shortened)


def tokenize_texts(
    texts: Mapping[str, list[str]],
    readers: Mapping[str, tuple[TokenizeTexts, int]],
    shortened: WordReducer | None = None,
) -> Batch:
    """Turns texts into ids and lengths, by batch entry.

    Args:
        texts: of each text entry; those that are the main caption in other ids are made here.
        readers: tokenizer and context length by text entry; of `text`, for all others.
        shortened: what is left of captions before they become tokens; None: all.
    """
    made: Batch = {}
    for entry in {**texts, **readers}:
        captions = texts.get(entry, texts["text"])
        if shortened is not None:
            captions = [shortened(caption) for caption in captions]
        tokenize, length = readers.get(entry, readers["text"])
        made[entry], made[f"{entry}_length"] = tokenize(captions, length)
        if entry != "text":
            made[f"{entry}.present"] = torch.tensor([bool(text) for text in captions])
    return made


class StepSampler(Sampler[tuple[int, int]]):
    """The (step, part) pairs from the stored step to the last.

    Args:
        dataset: tells the parts of each step.
        first_step: where to start.
    """

    def __init__(self, dataset: StepDataset, first_step: int = 0):
        self.dataset = dataset
        self.first_step = first_step

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for step in range(self.first_step, len(self.dataset)):
            for part in range(self.dataset.num_parts(step)):
                yield step, part


class StepLoader:
    """The parts of each step, as lists, in order.

    Its length is that of the whole run, not of what remains: a trainer that resumes counts batches
    from the stored step on and would otherwise end the epoch early and start over.

    Args:
        loader: yields all parts in order, from the first step on.
        dataset: tells the parts of each step.
        first_step: where the loader starts.
    """

    def __init__(self, loader: DataLoader, dataset: InParts, first_step: int):
        self.loader = loader
        self.dataset = dataset
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[Batch]]:
        parts = map(accepted, self.loader)
        for step in range(self.first_step, len(self.dataset)):
            yield [next(parts) for _ in range(self.dataset.num_parts(step))]

    def __len__(self) -> int:
        return len(self.dataset)


def accepted(part: Batch | Refusal) -> Batch:
    """Returns a batch; raises the ValueError that a worker met instead of it."""
    if isinstance(part, Refusal):
        raise ValueError(part.message)
    return part


def join(parts: Sequence[Batch]) -> Batch:
    """Joins the parts of a batch; a single one is returned as it is."""
    if len(parts) == 1:
        return parts[0]
    return {entry: torch.cat([part[entry] for part in parts]) for entry in parts[0]}
