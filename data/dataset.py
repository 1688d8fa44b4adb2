"""Maps a step to this rank's batch.

In: the plan, the run's steps, a sample loader and a tokenizer. Out: `dict[str, Tensor]`. The batch
is a function of the step alone, in any worker and however often. Several workers make the parts of
a large batch, so that none of them holds many batches. A step may take batches of several streams:
`NAME/text` is an entry of the stream NAME.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

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
Value = TypeVar("Value")
MAIN = ""  # the stream that `data` itself describes
MAIN_NAME = "main"  # what users call it
# Size of a part; a few parts per worker wait in memory.
PART_BYTES = 64 << 20


class Order(Protocol):
    """Maps positions to samples: a `Plan` or a `MixedPlan`."""

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
        plan: maps positions to samples.
        steps: maps steps to positions.
        loader: loads samples.
        tokenize: `(texts, context_length)` to (ids [n, context_length], lengths [n]).
        context_length: tokens a caption.
        rank: this process.
        world_size: number of processes.
        part_rows: samples of a part at most; by default those that fit into 64 MiB.
        prefetcher: fetches the shards of coming steps.
        word_reducers: shortens captions before tokenizing, by phase; None: does not.
        entry_readers: tokenizer and context length of single text entries.
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
        entry_readers: Mapping[str, tuple[TokenizeTexts, int]] | None = None,
    ):
        self.plan = plan
        self.steps = steps
        self.loader = loader
        self.readers = {"text": (tokenize, context_length), **(entry_readers or {})}
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
        """Makes a batch or a part; a worker returns a user error as a `Refusal`."""
        try:
            return self._load(*(index if isinstance(index, tuple) else (index, None)))
        except ValueError as error:
            return refusal(error)

    def _load(self, step: int, part: int | None) -> Batch:
        self.prefetch(step)
        # As many threads in the training process as in a worker, so that sums of floats agree.
        num_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._batch(step, part)
        finally:
            torch.set_num_threads(num_threads)

    def prefetch(self, step: int) -> None:
        """Fetches the shards of coming steps, in one worker of each rank for all of them."""
        if self.prefetcher and ((worker := get_worker_info()) is None or worker.id == 0):
            self.prefetcher.at(step)

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
        reducer = self.word_reducers[phase] if self.word_reducers else None
        batch |= self.tokenized(texts, reducer)
        return batch | {
            "source": torch.from_numpy(self.loader.manifest.source_ids[shards]),
            "shard": torch.from_numpy(shards),
        }

    def tokenized(self, texts: dict[str, list[str]], reducer: WordReducer | None = None) -> Batch:
        """Turns texts into ids and lengths, by batch entry; see `tokenize_texts`."""
        return tokenize_texts(texts, self.readers, reducer)


def tokenize_texts(
    texts: Mapping[str, list[str]],
    readers: Mapping[str, tuple[TokenizeTexts, int]],
    reducer: WordReducer | None = None,
) -> Batch:
    """Turns texts into ids and lengths, by batch entry.

    Args:
        texts: captions by text entry; entries without any take the main caption.
        readers: tokenizer and context length by text entry; other entries take those of `text`.
        reducer: shortens captions before tokenizing; None: does not.
    """
    tokens: Batch = {}
    for entry in {**texts, **readers}:
        captions = texts.get(entry, texts["text"])
        if reducer is not None:
            captions = [reducer(caption) for caption in captions]
        tokenize, length = readers.get(entry, readers["text"])
        tokens[entry], tokens[f"{entry}_length"] = tokenize(captions, length)
        if entry != "text":
            tokens[f"{entry}.present"] = torch.tensor([bool(text) for text in captions])
    return tokens


class StreamsDataset(Dataset):
    """Maps (step, part) to a part of this rank's batches; the parts of a stream follow another's.

    Args:
        datasets: by stream.
    """

    def __init__(self, datasets: Mapping[str, StepDataset]):
        self.datasets = dict(datasets)

    def __len__(self) -> int:
        return len(self.datasets[MAIN])

    def num_parts(self, step: int) -> int:
        """Returns how many parts make up this rank's batches of a step."""
        return sum(dataset.num_parts(step) for dataset in self.datasets.values())

    def __getitem__(self, index: int | tuple[int, int]) -> Batch | Refusal:
        """Makes a part, or all of them; a worker returns a user error as a `Refusal`."""
        if not isinstance(index, tuple):
            parts = [self[index, part] for part in range(self.num_parts(index))]
            refused = next((part for part in parts if isinstance(part, Refusal)), None)
            return refused or join([part for part in parts if not isinstance(part, Refusal)])
        step, part = index
        # The one worker that prefetches may never make a part of some stream.
        try:
            for dataset in self.datasets.values():
                dataset.prefetch(step)
        except ValueError as error:
            return refusal(error)
        for stream, dataset in self.datasets.items():
            if part < (num_parts := dataset.num_parts(step)):
                made = dataset[step, part]
                return made if isinstance(made, Refusal) else named(stream, made)
            part -= num_parts
        raise IndexError(f"step {step} has no part {index[1]}")


class StepSampler(Sampler[tuple[int, int]]):
    """The (step, part) pairs from the stored step to the last.

    Args:
        dataset: knows the parts of each step.
        first_step: the first step to yield.
    """

    def __init__(self, dataset: InParts, first_step: int = 0):
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
        dataset: knows the parts of each step.
        first_step: the loader's first step.
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
    """Returns a batch; raises a worker's `Refusal` as a ValueError."""
    if isinstance(part, Refusal):
        raise ValueError(part.message)
    return part


def join(parts: Sequence[Batch]) -> Batch:
    """Joins the parts of a batch; those of different streams have different entries."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, list[Any]] = {}
    for part in parts:
        for entry, values in part.items():
            columns.setdefault(entry, []).append(values)
    return {entry: concatenated(values) for entry, values in columns.items()}


def concatenated(values: list[Any]) -> Any:
    """Joins tensors, or the arrays by which lengths stay on the host."""
    if len(values) == 1:
        return values[0]
    return torch.cat(values) if isinstance(values[0], Tensor) else np.concatenate(values)


def named(stream: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """Returns a stream's values under the names that they have among those of all streams."""
    return {f"{stream}/{name}" if stream else name: value for name, value in values.items()}


def by_stream(batch: Mapping[str, Tensor]) -> dict[str, Batch]:
    """Returns each stream's entries under the names that they have in a stream alone."""
    batches: dict[str, Batch] = {}
    for name, rows in batch.items():
        stream, _, entry = name.rpartition("/")
        batches.setdefault(stream, {})[entry] = rows
    return batches
