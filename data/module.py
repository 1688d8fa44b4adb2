"""The data of a run as Lightning wants it.

In: a manifest and the choices of the `data` slot; from `fit`, through `connect`, the schedule, the
seed and the model's sizes. Out: the training loader, and one integer to resume from.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from .cache import ShardCache
from .captions import CaptionPolicy, policy_of
from .dataset import Batch, StepDataset, StepLoader, StepSampler, join
from .errors import ErrorLedger
from .first_look import check_captions
from .manifest import Manifest
from .mixed_plan import MixedPlan
from .mixture import Mixture
from .prefetch import Prefetcher
from .reader import ShardReader
from .recipe import Recipe, View
from .sample import SampleLoader
from .schedule import Schedule
from .selection import Selection, WeightPolicy
from .sidecar import Sidecar, check_file_names
from .sources import Source, check_names, explicit_shares
from .syntax import WordReducer
from .texts import Text
from .tokenize import ClipTokenizer, Tokenizer
from .transforms import EvalTransform, TrainTransform, Transform
from .urls import shown
from .workers import start_worker

# Shards that a process keeps open: most systems allow 1,024 files.
MAX_OPEN = 512
# For whose shards room is made ahead of need. Few steps stay within the shards at hand; what does
# not fit into the cache is left for later, so that looking far ahead costs no more than looking.
STEPS_AHEAD = 256


class PairsDataModule(LightningDataModule):
    """Image-text pairs from WebDataset shards. `docs/data.md` describes every part.

    Args:
        manifest: Path of the file that `counterpoint data index` wrote, or a list of such files.
        tokenizer: Texts to token ids; CLIP's by default.
        train_transform: Pictures in training; random crops by default.
        eval_transform: Pictures in evaluation; the centre crop by default.
        num_workers: Loader processes a rank; 0 loads in the training process.
        lanes: Parallel walks of the plan. Part of what defines the order of samples.
        block: Samples shuffled together within a lane. Part of what defines the order, too.
        key_field: JSON field that identifies a sample.
        caption: A policy, or a list of the places where captions are looked for: an extension
            (`txt`) or a JSON value (`json:caption`); the first that has text is taken.
        max_error_rate: Samples that may be replaced, per sample, before the run stops.
        sources: Share, captions and key field of single sources, by name.
        temperature: Mixes the sources in proportion to num_samples^(1/temperature) instead of
            stated shares.
        same_as: What the main picture's augmentation is taken from instead of being drawn.
        caption_same_as: The sidecar's entry with the numbers that choose captions instead of drawn
            ones: the captions of a store are then read again.
        views: Further views of each picture; NAME becomes the batch entry `image.NAME`.
        texts: Further texts, as `caption` or a `Text` with a tokenizer of its own; NAME becomes the
            batch entry `text.NAME`.
        sidecars: Joined tensors; NAME becomes the batch entries `NAME.COLUMN`.
        keep: Keep-lists: parquet files of the samples to use.
        keep_weights: What their weights do; repeat samples by default.
        cache: Where copies of remote shards go.
        allow_pipe: Whether the commands of a manifest's `pipe:` addresses may run.

    Attributes:
        first_step: The step the training loader starts at.
        seed, image_size, context_length, schedule, word_reducers: Set by `connect`.
    """

    def __init__(
        self,
        manifest: str | list[str],
        tokenizer: Tokenizer | None = None,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        num_workers: int = 2,
        lanes: int = 16,
        block: int = 4096,
        key_field: str = "key",
        caption: tuple[str, ...] | CaptionPolicy = ("txt",),
        max_error_rate: float = 0.01,
        sources: dict[str, Source] | None = None,
        temperature: float | None = None,
        same_as: str | None = None,
        caption_same_as: str | None = None,
        views: dict[str, View] | None = None,
        texts: dict[str, tuple[str, ...] | CaptionPolicy | Text] | None = None,
        sidecars: dict[str, Sidecar] | None = None,
        keep: tuple[str, ...] = (),
        keep_weights: WeightPolicy | None = None,
        cache: ShardCache | None = None,
        allow_pipe: bool = False,
    ):
        super().__init__()
        if num_workers < 0:
            raise ValueError(f"num_workers={num_workers}: give 0 (no loader processes) or more")
        self.manifest_path = manifest
        self.tokenizer: Tokenizer = ClipTokenizer() if tokenizer is None else tokenizer
        self.train_transform = train_transform or TrainTransform()
        self.eval_transform = eval_transform or EvalTransform()
        self.num_workers = num_workers
        self.lanes = lanes
        self.block = block
        self.key_field = key_field
        self.caption = policy_of(caption)
        self.max_error_rate = max_error_rate
        self.sources = sources or {}
        self.temperature = temperature
        self.same_as = same_as
        self.caption_same_as = caption_same_as
        self.views = views or {}
        self.texts = {
            name: text if isinstance(text, Text) else Text(text)
            for name, text in (texts or {}).items()
        }
        self.sidecars = sidecars or {}
        self.keep = tuple(keep)
        self.keep_weights = keep_weights
        self.cache = cache
        if cache is not None and allow_pipe:
            cache.transport.allow_pipe = True
        self.first_step = 0
        self.schedule: Schedule | None = None
        self.seed = 0
        self.image_size = 0
        self.context_length = 0
        self.word_reducers: Sequence[WordReducer | None] = ()
        self._manifest: Manifest | None = None
        self._selection: Selection | None = None
        self._ledger: ErrorLedger | None = None

    @property
    def manifest(self) -> Manifest:
        """The shards, loaded when first asked for."""
        if self._manifest is None:
            self._manifest = Manifest.load(self.manifest_path)
        return self._manifest

    @property
    def selection(self) -> Selection | None:
        """The kept samples, compiled when first asked for; None keeps all."""
        if self._selection is None and self.keep:
            first = Path(self.keep[0]).resolve()
            folder = first.with_name(f".{first.stem}.compiled")
            self._selection = Selection.compile(
                self.keep, self.manifest, folder, self.seed, self.keep_weights
            )
        return self._selection

    @property
    def epoch_size(self) -> int:
        """Samples of one pass over the data, those that weights repeat as often as they do."""
        if self.selection is None:
            return self.manifest.num_samples
        return int(self.selection.counts.sum())

    @property
    def fingerprint(self) -> str:
        """What the data is: the shards, and which of their samples are kept."""
        if self.selection is None:
            return self.manifest.fingerprint
        return f"{self.manifest.fingerprint}-{self.selection.fingerprint}"

    @property
    def ledger(self) -> ErrorLedger:
        """Counts of replaced samples; `train` feeds, merges and checks it."""
        if self._ledger is None:
            manifest = self.manifest
            self._ledger = ErrorLedger(manifest.sources, self.max_error_rate, urls=manifest.urls)
        return self._ledger

    def reads(self, entry: str) -> tuple[Tokenizer, int]:
        """Returns what turns a text entry (`text`, `text.NAME`) into ids, and how many."""
        text = self.texts.get(entry.partition(".")[2], Text())
        return text.tokenizer or self.tokenizer, text.context_length or self.context_length

    def connect(
        self,
        schedule: Schedule,
        seed: int,
        image_size: int,
        context_length: int,
        word_reducers: Sequence[WordReducer | None] = (),
    ) -> None:
        """Takes what the other slots decide.

        Args:
            schedule: Steps to positions.
            seed: Of the order and the augmentations.
            image_size: Side in pixels.
            context_length: Tokens a caption.
            word_reducers: Of each phase; by default none.
        """
        self.schedule = schedule
        self.seed = seed
        self.image_size = image_size
        self.context_length = context_length
        self.word_reducers = word_reducers

    def check(self, num_nodes: int = 1) -> None:
        """Looks at everything that training will read, before it starts.

        Args:
            num_nodes: Machines that take part; each needs its share of the shards at hand.

        Raises:
            ValueError: Something is missing, cut off, contradictory, or too small.
        """
        assert self.schedule is not None, "connect comes first"
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
        check_captions(self.manifest, ShardReader(self.manifest.urls), captions)
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
            batches = {size for steps, size in self.schedule.phases if steps}
            # Small batches touch more lanes on each node, large ones more shards of each lane.
            needs = [plan.working_set(sizes, num_nodes, size) for size in batches]
            self.cache.require(*max(needs, key=lambda need: need[1]))

    def plan(self) -> MixedPlan:
        """Returns the order of samples.

        Raises:
            ValueError: The shares do not fit the sources.
        """
        selection, manifest = self.selection, self.manifest
        counts = manifest.counts if selection is None else selection.counts
        shares = explicit_shares(self.sources, manifest.sources)
        if self.temperature is not None:
            if shares:
                raise ValueError("give data.temperature or shares in data.sources, not both")
            sizes = [
                int(counts[manifest.source_ids == i].sum()) for i in range(len(manifest.sources))
            ]
            by_name = dict(zip(manifest.sources, sizes, strict=True))
            shares = Mixture.temperature(by_name, self.temperature)
        return MixedPlan(
            counts,
            manifest.source_ids,
            manifest.sources,
            self.seed,
            self.lanes,
            self.block,
            shares,
        )

    def recipe(self) -> Recipe:
        """Returns what is made of every sample.

        Raises:
            ValueError: A view takes its augmentation from something that is not there.
        """
        main = View(self.train_transform, same_as=self.same_as)
        views = {"image": main} | {f"image.{name}": view for name, view in self.views.items()}
        names = self.manifest.sources
        own = {name: self.sources.get(name, Source()) for name in names}
        captions = {n: policy_of(s.caption) if s.caption else self.caption for n, s in own.items()}
        texts = {
            f"text.{name}": dict.fromkeys(names, policy_of(text.caption))
            for name, text in self.texts.items()
            if text.caption is not None
        }
        return Recipe(
            seed=self.seed,
            views={
                name: replace(view, size=self.image_size if view.size is None else view.size)
                for name, view in views.items()
            },
            texts={"text": captions} | texts,
            key_fields={name: source.key_field or self.key_field for name, source in own.items()},
            sidecars=self.sidecars,
            caption_same_as=self.caption_same_as,
        )

    def train_dataset(self, rank: int = 0, world_size: int = 1) -> StepDataset:
        """Returns the batches of one rank, by step."""
        if self.schedule is None:
            raise ValueError("PairsDataModule.connect must be called before training starts")
        self.schedule.check_world_size(world_size)
        plan, urls, sizes = self.plan(), self.manifest.urls, self.manifest.num_bytes
        sha256 = self.manifest.checksums
        batch_size = max(size for _, size in self.schedule.phases)
        in_use, _ = plan.working_set(sizes, world_size, batch_size)
        max_open = min(max(64, in_use), MAX_OPEN)
        reader = ShardReader(urls, self.cache, max_open, sizes, sha256)
        loader = SampleLoader(self.manifest, reader, self.recipe(), self.selection)
        dataset = StepDataset(
            plan,
            self.schedule,
            loader,
            self.tokenizer,
            self.context_length,
            rank,
            world_size,
            word_reducers=self.word_reducers,
            own={f"text.{name}": self.reads(f"text.{name}") for name in self.texts},
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
        """Returns this rank's loader from `first_step` on; its length is the whole run's."""
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        dataset = self.train_dataset(rank, world_size)
        workers: dict[str, Any] = {}
        if self.num_workers:
            # Forked workers start at once and notice when a killed parent is gone. Those of a fork
            # server, torch's newer default, import everything again and wait for ever.
            workers = {
                "persistent_workers": True,
                "prefetch_factor": 4,
                "multiprocessing_context": "fork",
            }
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=StepSampler(dataset, self.first_step),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            **workers,
        )
        return StepLoader(loader, dataset, self.first_step)

    def on_before_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> list[Batch]:
        """Counts replaced samples while the batch is still on the host."""
        for part in batch:
            self.ledger.update(part)
        return batch

    def on_after_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> Batch:
        """Joins the parts where they are used."""
        return join(batch)

    def state_dict(self) -> dict[str, Any]:
        """Returns the step to continue from, what is passed over, errors, what the data was."""
        step = self.trainer.global_step if self.trainer else self.first_step
        return {
            "step": step,
            "left_out": [] if self.schedule is None else list(self.schedule.left_out),
            "ledger": self.ledger.state_dict(),
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from `state_dict`.

        Raises:
            ValueError: The manifest is not the one the run began with.
        """
        if state_dict["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"the manifest '{self.manifest_path}', with its keep-lists, lists other samples "
                "than the run began with; resume with those, or start a new run with --init_from"
            )
        self.first_step = int(state_dict["step"])
        if self.schedule is not None:
            left_out = state_dict.get("left_out", [])
            self.schedule.left_out = [(int(step), int(samples)) for step, samples in left_out]
        self.ledger.load_state_dict(state_dict["ledger"])
