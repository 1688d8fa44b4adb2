"""Several streams of samples in one step: the batches of each, under its name.

In: a dataset for each stream, the main one's under "". Out: batches whose entries are those of all
streams that the step takes a batch of: `text`, and `NAME/text` of the stream NAME.
"""

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor
from torch.utils.data import Dataset

from .dataset import Batch, StepDataset, join
from .refusals import Refusal

Value = TypeVar("Value")
MAIN = ""  # the stream that `data` itself describes
MAIN_NAME = "main"  # what users call it


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
        for dataset in self.datasets.values():
            dataset.prefetch(step)
        for stream, dataset in self.datasets.items():
            if part < (num_parts := dataset.num_parts(step)):
                made = dataset[step, part]
                return made if isinstance(made, Refusal) else named(stream, made)
            part -= num_parts
        raise IndexError(f"step {step} has no part {index[1]}")


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
