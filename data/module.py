"""Image-text pairs from listed shards, in an order given by a formula.

In: a manifest and the choices of the `data` slot; from `fit`, through `connect`, its steps, the
seed and the model's sizes. Out: the training loader, and one integer to resume from.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import MAIN, MAIN_NAME, StepDataset, StepLoader, StepSampler, StreamsDataset
from .hashing import text_hash
from .order.counts import FixedCounts
from .order.mixed_plan import MixedPlan
from .order.mixture import Mixture
from .order.selection import Selection, WeightPolicy
from .order.steps import Steps, Turn
from .pairs import Pairs, check_no_slash
from .recipe import Source, check_names, explicit_shares
from .sample import SampleLoader
from .shards.cache import ShardCache
from .shards.manifest import Manifest
from .shards.prefetch import Prefetcher
from .shards.reader import ShardReader
from .sidecar import Sidecar, check_file_names
from .start_checks import check_captions, check_images, check_keys, check_regions
from .text.syntax import WordReducer
from .text.tokenize import Tokenizer
from .urls import shown

# Shards that a process keeps open: most systems allow 1,024 files.
MAX_OPEN = 512
# Steps whose shards are prefetched. Few steps stay within the shards in use; shards that do not fit
# into the cache are left for later, so that a long horizon costs little.
STEPS_AHEAD = 256
MAX_SEED = (1 << 31) - 1


class PairsDataModule(Pairs):
    """Image-text pairs from listed WebDataset shards. `docs/data.md` describes every part.

    Args:
        manifest: path of the file that `counterpoint data index` wrote, or a list of such files.
        lanes: parallel walks of the plan. Part of what defines the order of samples.
        block: samples shuffled together within a lane. Part of what defines the order, too.
        sources: share, captions and key field of single sources, by name.
        temperature: mixes the sources in proportion to num_samples^(1/temperature) instead of
            stated shares.
        same_as: entry that replaces the main image's drawn augmentation.
        caption_same_as: sidecar entry whose numbers replace the drawn ones that choose captions, so
            that the captions of a store are used again.
        sidecars: joined tensors; NAME becomes the batch entries `NAME.COLUMN`.
        keep_lists: parquet files of the samples to use.
        keep_weights: how their weights act; they repeat samples by default.
        cache: holds copies of remote shards.
        allow_pipe: whether the commands of a manifest's `pipe:` addresses may run.
        streams: further streams; NAME becomes the batch entries `NAME/...`, which the terms that
            `objective.streams` names read.
        turns: whose turn a step is: so many steps in a row by stream, `main` (this one) first, then
            the others by name, again and again; streams that are not named, and without `turns`
            all, are in every step.
        choices: arguments of `Pairs`.

    Raises:
        ValueError: a name of a stream cannot be used, or turns name another stream or a number
            below 1.
    """

    def __init__(
        self,
        manifest: str | list[str],
        lanes: int = 16,
        block: int = 4096,
        sources: dict[str, Source] | None = None,
        temperature: float | None = None,
        same_as: str | None = None,
        caption_same_as: str | None = None,
        sidecars: dict[str, Sidecar] | None = None,
        keep_lists: tuple[str, ...] = (),
        keep_weights: WeightPolicy | None = None,
        cache: ShardCache | None = None,
        allow_pipe: bool = False,
        streams: dict[str, "DataStream"] | None = None,
        turns: dict[str, int] | None = None,
        **choices: Any,
    ):
        super().__init__(**choices)
        self.manifest_path = manifest
        self.lanes = lanes
        self.block = block
        self.sources = sources or {}
        self.temperature = temperature
        self.same_as = same_as
        self.caption_same_as = caption_same_as
        self.sidecars = sidecars or {}
        check_no_slash("data.sidecars", self.sidecars)
        self.keep_lists = tuple(keep_lists)
        self.keep_weights = keep_weights
        self.cache = cache
        if cache is not None and allow_pipe:
            cache.transport.allow_pipe = True
        self.streams: Mapping[str, DataStream] = _checked(streams or {}, turns)
        # Files that list them otherwise are of the same run.
        first = [MAIN_NAME, *sorted(self.streams)]
        self.turns = turns and {name: turns[name] for name in first if name in turns}
        for stream in self.streams.values():
            if not stream.has_tokenizer:
                stream.tokenizer = self.tokenizer

    @cached_property
    def manifest(self) -> Manifest:
        """The shards, loaded at the first access."""
        return Manifest.load(self.manifest_path)

    @cached_property
    def selection(self) -> Selection | None:
        """The kept samples, compiled at the first access; None: all."""
        if not self.keep_lists:
            return None
        first = Path(self.keep_lists[0]).resolve()
        folder = first.with_name(f".{first.stem}.compiled")
        return Selection.compile(
            self.keep_lists, self.manifest, folder, self.seed, self.keep_weights
        )

    @property
    def source_names(self) -> list[str]:
        return self.manifest.sources

    @property
    def shard_urls(self) -> Sequence[str]:
        return self.manifest.urls

    @property
    def epoch_size(self) -> int:
        """Samples of one pass over the data, with repetitions by weight."""
        if self.selection is None:
            return self.manifest.num_samples
        return self.selection.counts.num_samples

    @property
    def fingerprint(self) -> str:
        """Hash of the shards and of the kept samples, of every stream."""
        parts = [self.manifest.fingerprint]
        if self.selection is not None:
            parts.append(self.selection.fingerprint)
        parts += [f"{name}:{stream.fingerprint}" for name, stream in sorted(self.streams.items())]
        return "-".join(parts)

    @property
    def has_weights(self) -> bool:
        return self.selection is not None and self.selection.has_weights

    def connect(
        self,
        steps: Steps,
        seed: int,
        image_size: int,
        context_length: int,
        word_reducers: Sequence[WordReducer | None] = (),
    ) -> None:
        of_all = _turns(self.turns, [MAIN_NAME, *self.streams])
        own = Steps(steps.phases, of_all[MAIN_NAME]) if self.turns else steps
        super().connect(own, seed, image_size, context_length, word_reducers)
        for name, stream in self.streams.items():
            phases = [(num_steps, stream.batch_size or size) for num_steps, size in steps.phases]
            # Of the same shards, another stream takes others at a time.
            own_seed = text_hash(seed, name) & MAX_SEED
            own = Steps(phases, of_all[name])
            stream.connect(own, own_seed, image_size, context_length, word_reducers)

    def check(self, num_nodes: int = 1) -> None:
        for name, stream in self.streams.items():
            try:
                stream.check(num_nodes)
            except ValueError as error:
                raise ValueError(f"data.streams.{name}: {error}") from error
        assert self.steps is not None, "connect comes first"
        check_names(self.sources, self.manifest.sources)
        # Made here, so that an error rate that is none is refused now.
        self.ledger.check()
        for sidecar in self.sidecars.values():
            sidecar.check(self.manifest.sources)
        if self.sidecars:
            check_file_names(self.manifest)
        plan, recipe = self.plan(), self.recipe()
        remote = self.manifest.check_files()
        captions = {name: text for name, text in recipe.texts["text"].items() if plan.reads(name)}
        reader = ShardReader(self.manifest.urls)
        check_captions(self.manifest, reader, captions)
        check_regions(self.manifest, reader, [*captions], recipe.regions)
        if self.reads_images:
            check_images(self.manifest, reader, captions)
        self.check_keep_lists()
        if remote and self.cache is None:
            url = shown(next(iter(remote.values())))
            raise ValueError(
                f"the shard '{url}' is on another machine; set data.cache to a ShardCache in a "
                "folder of a local disk, or copy the shards to this machine and index them there"
            )
        if self.cache is not None and remote:
            for url in remote.values():
                self.cache.transport.require(url)
            # Local shards are not copied: a byte each, since 0 means that the size is unknown.
            sizes = np.where(self.manifest.remote, self.manifest.num_bytes, 1)
            batches = {size for steps, size in self.steps.phases if steps}
            # Small batches touch more lanes on each node, large ones more shards of each lane.
            needs = [plan.working_set(sizes, num_nodes, size) for size in batches]
            self.cache.require(*max(needs, key=lambda need: need[1]))

    def check_keep_lists(self) -> None:
        """Compares some keys of each keep-list with those of the shards; see `check_keys`."""
        lists = [Path(path) for path in self.keep_lists]
        reader = ShardReader(self.manifest.urls)
        check_keys(lists, self.manifest, reader, self.recipe().key_fields)

    def plan(self) -> MixedPlan:
        """Returns the order of samples.

        Raises:
            ValueError: the shares do not fit the sources.
        """
        selection, manifest = self.selection, self.manifest
        counts = FixedCounts(manifest.counts) if selection is None else selection.counts
        shares = explicit_shares(self.sources, manifest.sources)
        if self.temperature is not None:
            if shares:
                raise ValueError("give data.temperature or shares in data.sources, not both")
            sizes = [
                counts.of(np.flatnonzero(manifest.source_ids == number)).num_samples
                for number in range(len(manifest.sources))
            ]
            by_name = dict(zip(manifest.sources, sizes, strict=True))
            shares = Mixture.temperature(by_name, self.temperature)
        return MixedPlan(
            counts, manifest.source_ids, manifest.sources, self.seed, self.lanes, self.block, shares
        )

    def train_dataset(self, rank: int = 0, world_size: int = 1) -> StepDataset:
        """Returns the batches of one rank, by step, without those of further streams."""
        steps = self.require_steps(world_size)
        plan, urls, sizes = self.plan(), self.manifest.urls, self.manifest.num_bytes
        sha256 = self.manifest.checksums
        batch_size = max(size for _, size in steps.phases)
        in_use, _ = plan.working_set(sizes, world_size, batch_size)
        max_open = min(max(64, in_use), MAX_OPEN)
        reader = ShardReader(urls, self.cache, max_open, sizes, sha256)
        loader = SampleLoader(self.manifest, reader, self.recipe(), self.selection)
        dataset = StepDataset(
            plan,
            steps,
            loader,
            self.tokenizer,
            self.context_length,
            rank,
            world_size,
            word_reducers=self.word_reducers,
            entry_readers=self.readers,
        )
        if self.cache is not None:
            dataset.prefetcher = Prefetcher(
                dataset.shards,
                self.cache,
                urls,
                sizes,
                total_steps=len(dataset),
                horizon=STEPS_AHEAD,
                sha256=sha256,
            )
        return dataset

    def train_dataloader(self) -> StepLoader:
        """Returns this rank's loader from `first_step` on; its length is that of the run."""
        rank_and_world_size = self.rank_and_world_size()
        dataset: StepDataset | StreamsDataset = self.train_dataset(*rank_and_world_size)
        if self.streams:
            of_all = {n: s.train_dataset(*rank_and_world_size) for n, s in self.streams.items()}
            dataset = StreamsDataset({MAIN: dataset, **of_all})
        loader = self.loader(dataset, sampler=StepSampler(dataset, self.first_step))
        return StepLoader(loader, dataset, self.first_step)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"the manifest '{self.manifest_path}', with its keep-lists, lists other samples "
                "than the run began with; resume with those, or start a new run with --init_from"
            )
        super().load_state_dict(state_dict)


class DataStream(PairsDataModule):
    """A further stream: samples of its own, in batches and an order of their own.

    Shards need no images where no term reads an image of the stream, and none is decoded then.
    Loader processes and evaluation are those of the main stream.

    Args:
        manifest: path of the file that `counterpoint data index` wrote, or a list of such files.
        batch_size: of the global batch; None: that of the phase.
        tokenizer: maps texts to token ids; the main stream's by default.
        choices: arguments of `PairsDataModule`.

    Raises:
        ValueError: batch_size is below 1.
    """

    def __init__(
        self,
        manifest: str | list[str],
        batch_size: int | None = None,
        tokenizer: Tokenizer | None = None,
        **choices: Any,
    ):
        super().__init__(
            manifest,
            tokenizer=tokenizer,
            streams=None,
            turns=None,
            num_workers=0,
            eval_transform=None,
            **choices,
        )
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"a stream has batch_size={batch_size}: give 1 or more")
        self.batch_size = batch_size
        self.has_tokenizer = tokenizer is not None


def _checked(
    streams: Mapping[str, DataStream], turns: Mapping[str, int] | None
) -> Mapping[str, DataStream]:
    for name in streams:
        if not name or "/" in name or "." in name or name in (MAIN_NAME, "tokens"):
            raise ValueError(
                f"the stream '{name}' needs another name: without dots and slashes, and neither "
                f"'{MAIN_NAME}', which is the stream that data itself describes, nor 'tokens'"
            )
    there = [MAIN_NAME, *streams]
    for name, count in (turns or {}).items():
        if name not in there or count < 1:
            raise ValueError(
                f"data.turns has {name}: {count}; give 1 or more steps for streams among "
                f"{', '.join(there)}"
            )
    return streams


def _turns(turns: Mapping[str, int] | None, names: Sequence[str]) -> dict[str, Turn]:
    """Returns the steps of each stream."""
    found, first, cycle = dict.fromkeys(names, Turn()), 0, sum((turns or {}).values())
    for name, count in (turns or {}).items():
        found[name] = Turn(first, count, cycle)
        first += count
    return found
