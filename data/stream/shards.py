"""Shards that are read from front to back, as webdataset reads them.

In: addresses, and how to mix their samples. Out: raw samples in webdataset's form, and counts of
read errors.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor
from webdataset.cache import FileCache, StreamingOpen
from webdataset.compat import WebDataset
from webdataset.gopen import Pipe, gopen
from webdataset.shardlists import split_by_worker

from ..errors import CAUSES, SampleError
from ..shards.tar import BLOCK, TarDamage
from ..urls import shown

# In a row, in one loader worker: then the run ends, instead of looping without a sample.
MAX_BAD_SHARDS = 64
MAX_BAD_SAMPLES = 1000
# How gzip, bzip2 and xz begin.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class Pipeline(Protocol):
    """Adds stages to a stream: `dataset.select(...)`, `dataset.decode("pil")`, ...."""

    def __call__(self, dataset: WebDataset) -> Iterable[dict[str, Any]]:
        """Returns the stream with further stages."""
        ...


@dataclass(frozen=True)
class Stream:
    """The shards of a stream of samples, and how it is mixed.

    Attributes:
        urls: shards, as `counterpoint data index` takes them; also `pipe:COMMAND`.
        resampled: whether each shard is drawn from all with replacement. If not, the shards are
            divided between the loader workers of all processes, each of which repeats its own.
        shuffle_shards: whether shards that are not drawn come in another order at each pass.
        shuffle: samples in each worker's shuffle buffer, filled before the first use; 0: none.
        source: name of the source, in counters and in the samples' keys.
        pipeline: function of a `webdataset.WebDataset` that returns it with further stages, after
            the shuffle buffer.
    """

    urls: str | list[str]
    resampled: bool = False
    shuffle_shards: bool = True
    shuffle: int = 1000
    source: str = "default"
    pipeline: Pipeline | None = None

    def __post_init__(self) -> None:
        if self.shuffle < 0:
            raise ValueError(f"data.webdataset.shuffle={self.shuffle}: give 0 (no buffer) or more")


class Faults:
    """Counts of unusable shards and samples; also webdataset's error handler.

    Args:
        urls: addresses of the shards.
    """

    def __init__(self, urls: Sequence[str]):
        self.numbers = {url: number for number, url in enumerate(urls)}
        self.url = ""
        self.counts: Counter[tuple[int, int, int]] = Counter()
        self.bad_shards = self.bad_samples = 0
        self._is_counted = False

    def begin(self, url: str) -> None:
        """Sets the current shard."""
        self.url, self._is_counted = url, False

    def __call__(self, error: Exception) -> bool:
        """Counts damage to the shard, once each time it is opened, and lets webdataset continue."""
        self.count_shard("shard_truncated", error)
        return True

    def count_shard(self, cause: str, error: Exception) -> None:
        """Counts a shard that cannot be read to its end.

        Raises:
            ValueError: `MAX_BAD_SHARDS` in a row could not be read.
        """
        if self._is_counted:
            return
        self._is_counted = True
        self.counts[CAUSES.index(cause), 0, self.numbers[self.url]] += 1
        self.bad_shards += 1
        if self.bad_shards >= MAX_BAD_SHARDS:
            reason = str(error.args[0] if error.args else error).splitlines()[0][:200]
            raise ValueError(
                f"data.webdataset: {self.bad_shards} shards in a row could not be read; the last, "
                f"'{shown(self.url)}': {type(error).__name__}: {shown(reason)}"
            )

    def count_sample(self, url: str, error: SampleError) -> None:
        """Counts a sample that cannot be used.

        Raises:
            ValueError: `MAX_BAD_SAMPLES` in a row could not be used.
        """
        self.counts[error.code, 0, self.numbers.get(url, 0)] += 1
        self.bad_samples += 1
        if self.bad_samples >= MAX_BAD_SAMPLES:
            raise ValueError(
                f"data.webdataset: {self.bad_samples} samples in a row could not be used; the "
                f"last, in '{shown(url)}': {error}; look at data.caption and the shards"
            )

    def count_good(self) -> None:
        """Resets the counts of failures in a row."""
        self.bad_shards = self.bad_samples = 0

    def take(self) -> Tensor:
        """Returns and clears the counts as rows (cause, source, shard), int64 [n, 3]."""
        rows = list(self.counts.elements())
        self.counts.clear()
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)


class Shards(WebDataset):
    """webdataset's dataset, which also checks the exit status of commands and counts by shard.

    Args:
        urls: addresses of the shards.
        stream: how they are mixed.
        rank: this process.
        world_size: number of processes.
        seed: seed of the order of shards and of the shuffle buffer.
        faults: counts read errors.
    """

    def __init__(
        self,
        urls: Sequence[str],
        stream: Stream,
        rank: int,
        world_size: int,
        seed: int,
        faults: Faults,
    ):
        is_shared = not stream.resampled
        super().__init__(
            list(urls),
            handler=faults,
            resampled=stream.resampled,
            shardshuffle=len(urls) if is_shared and stream.shuffle_shards else False,
            detshuffle=True,
            nodesplitter=partial(deal, rank=rank, world_size=world_size) if is_shared else None,
            workersplitter=split_by_worker if is_shared else None,
            empty_check=False,
            seed=seed,
        )
        self.faults = faults
        openers = [isinstance(stage, StreamingOpen | FileCache) for stage in self.pipeline]
        self.pipeline[openers.index(True)] = self.opened

    def opened(self, shards: Iterable[Mapping[str, str]]) -> Iterator[dict[str, Any]]:
        """Opens each shard when the one before has been read, and closes it."""
        for shard in shards:
            url = shard["url"]
            self.faults.begin(url)
            try:
                stream = gopen(url)
            except Exception as error:
                self.faults.count_shard("shard_missing", error)
                continue
            # Pipe.read checks the status after each read, and loses what it has read if the command
            # has failed by then; `close` checks it as well.
            read = Ending(stream.stream if isinstance(stream, Pipe) else stream)
            try:
                yield {"url": url, "stream": read}
            except GeneratorExit:
                # Closing would wait for a command that may hang.
                if isinstance(stream, Pipe):
                    stream.proc.kill()
                raise
            try:
                stream.close()
                read.check()
            except Exception as error:
                self.faults.count_shard("shard_truncated", error)


class Ending:
    """A stream that checks its end: tarfile accepts any end as the tar's.

    Args:
        stream: the stream to read.
    """

    def __init__(self, stream: Any):
        self.stream = stream
        self.head = self.tail = b""

    def read(self, *args: int) -> bytes:
        data = self.stream.read(*args)
        self.head = self.head or data[:6]
        self.tail = data[-BLOCK:] or self.tail
        return data

    def check(self) -> None:
        """Raises TarDamage unless the end mark of a tar, or a compressed one, was read."""
        if any(self.tail) and not self.head.startswith(COMPRESSED):
            raise TarDamage("it ends without an end mark")


def deal(shards: Iterable[Any], rank: int, world_size: int) -> Iterator[Any]:
    """Yields this rank's shards."""
    yield from islice(shards, rank, None, world_size)
