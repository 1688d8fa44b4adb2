"""Image-text pairs from sources that can be neither indexed nor cached.

In: addresses that webdataset opens, and the choices of the `data` slot that do not need a list of
shards. Out: a data module whose batches are like those of listed shards, without their guarantees
of order: it stores no position in the stream.
"""

import inspect
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from webdataset.gopen import gopen_schemes

from ..dataset import Batch, StepLoader
from ..module import PairsDataModule
from ..pairs import Pairs
from ..urls import find_shards, scheme, shown
from .dataset import StreamDataset
from .shards import Stream

# Programs that webdataset calls.
PROGRAMS = {"http": "curl", "https": "curl", "hf": "curl", "gs": "gsutil"}


class StreamingPairs(Pairs):
    """Image-text pairs from a stream of WebDataset shards.

    Every rank gets batches of equal size at every step; the stream never ends. Unusable samples are
    left out and counted.

    Args:
        stream: the shards, and how they are mixed.
        allow_pipe: whether `pipe:` addresses may run.
        choices: arguments of `Pairs`; every loader process reads its own shards.
    """

    def __init__(self, stream: Stream, allow_pipe: bool = False, **choices: Any):
        super().__init__(**choices)
        self.stream = stream
        self.allow_pipe = allow_pipe

    @property
    def caveat(self) -> str:  # type: ignore[override]
        return (
            f"data.webdataset reads {len(self.shard_urls)} shards as they come: which samples a "
            "step sees cannot be repeated, and a resumed run goes on at its step with a new stream"
        )

    @property
    def source_names(self) -> list[str]:
        return [self.stream.source]

    @cached_property
    def shard_urls(self) -> Sequence[str]:  # type: ignore[override]
        """Addresses, expanded; raises ValueError if nothing exists under a name."""
        urls = self.stream.urls
        return list(find_shards([urls] if isinstance(urls, str) else urls))

    @property
    def epoch_size(self) -> int | None:
        return None

    @property
    def fingerprint(self) -> str:
        """Identifies a stream only: its samples may change."""
        return "stream"

    def check(self, num_nodes: int = 1) -> None:
        assert self.steps is not None, "connect comes first"
        self.ledger.check()
        self.recipe()
        for kind, url in {scheme(url): url for url in self.shard_urls}.items():
            self._check_scheme(kind, shown(url))

    def _check_scheme(self, kind: str, url: str) -> None:
        program = PROGRAMS.get(kind)
        if kind == "pipe" and not self.allow_pipe:
            raise ValueError(
                f"data.webdataset: '{url}' is a command, and running commands is not allowed by "
                "default; if you trust it, set data.allow_pipe=true"
            )
        if kind and kind not in gopen_schemes:
            raise ValueError(
                f"data.webdataset: webdataset opens no {kind}:// addresses such as '{url}'; name a "
                "command that prints the shard ('pipe:aws s3 cp s3://... -', with "
                "data.allow_pipe=true), or index the shards and set data.manifest and data.cache"
            )
        if program is not None and shutil.which(program) is None:
            raise ValueError(
                f"data.webdataset: webdataset opens '{url}' with the program {program}, which is "
                "not installed here"
            )

    def train_dataset(self, rank: int = 0, world_size: int = 1) -> StreamDataset:
        """Returns the batches of one rank from `first_step` on.

        Raises:
            ValueError: there are fewer shards than loader workers to share them.
        """
        steps = self.require_steps(world_size)
        num_shards, readers = len(self.shard_urls), world_size * max(1, self.workers())
        if num_shards < readers and not self.stream.resampled:
            most = num_shards // world_size
            fix = f"data.num_workers={most}" if most else "fewer processes"
            raise ValueError(
                f"data.webdataset has {num_shards} shards, and {world_size} processes with "
                f"{self.workers()} loader workers each share them: use {fix}, more shards, or "
                "data.webdataset.resampled=true"
            )
        return StreamDataset(
            self.shard_urls,
            self.stream,
            self.recipe(),
            self.readers,
            steps,
            self.first_step,
            rank,
            world_size,
            self.word_reducers,
        )

    def train_dataloader(self) -> StepLoader:
        """Returns this rank's loader from `first_step` on; its length is that of the run."""
        dataset = self.train_dataset(*self.rank_and_world_size())
        return StepLoader(self.loader(dataset), dataset.parts, self.first_step)

    def on_before_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> list[Batch]:
        for part in batch:
            self.ledger.count(part.pop("skipped"))
        return super().on_before_batch_transfer(batch, dataloader_idx)


def make_pairs(
    manifest: str | list[str] | None = None, webdataset: Stream | None = None, **choices: Any
) -> Pairs:
    """Image-text pairs from listed shards, or from a stream. `docs/data.md` describes every part.

    Args:
        manifest: path of the file that `counterpoint data index` wrote, or a list of such files.
        webdataset: instead, shards that can be neither indexed nor cached; the samples of a step
            cannot be repeated then.
        choices: arguments of `PairsDataModule` or `StreamingPairs`.

    Raises:
        ValueError: neither or both are given, or a choice that needs listed shards.
    """
    if webdataset is not None:
        return StreamingPairs(webdataset, **streamed(manifest, choices))
    if manifest is None:
        raise ValueError(
            "data.manifest is missing: the path of what `counterpoint data index SHARDS --out "
            "FILE` writes (or set data.webdataset.urls, for shards that cannot be indexed)"
        )
    return PairsDataModule(manifest, **choices)


def streamed(manifest: str | list[str] | None, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the choices that apply to a stream.

    Raises:
        ValueError: another one is set.
    """
    of_all = inspect.signature(Pairs).parameters
    names = of_all.keys() | inspect.signature(StreamingPairs).parameters.keys()
    usual = {**of_all, **inspect.signature(PairsDataModule).parameters}
    for name, value in {"manifest": manifest, **choices}.items():
        empty = (None, (), [], {}, usual[name].default)
        if name not in names and value not in empty:
            raise ValueError(
                f"data.{name} needs listed shards, and data.webdataset has none: leave it out, or "
                "set data.manifest in place of data.webdataset"
            )
    return {name: value for name, value in choices.items() if name in names}
