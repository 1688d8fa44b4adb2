"""The base class of data modules of image-text pairs.

In: the choices of the `data` slot for every kind of source; from `fit`, through `connect`, the
run's steps, the seed and the model's sizes. Out: a Lightning data module, except for the batches.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from .dataset import MAIN, MAIN_NAME, Batch, by_stream, join, named
from .errors import ErrorLedger
from .images.transforms import EvalTransform, TrainTransform, Transform
from .order.steps import Steps
from .recipe import Recipe, Source, Text, View
from .sidecar import Sidecar
from .text.captions import CaptionPolicy, policy_of
from .text.syntax import WordReducer
from .text.tokenize import ClipTokenizer, Tokenizer
from .workers import num_workers as fitting_workers
from .workers import start_worker

PREFETCH = 4  # parts that wait for each worker


class Pairs(LightningDataModule, ABC):
    """Image-text pairs in batches of steps.

    Args:
        tokenizer: maps texts to token ids; CLIP's by default.
        train_transform: transform in training; random crops by default.
        eval_transform: transform in evaluation; the centre crop by default.
        num_workers: loader processes a rank; 0 loads in the training process; `auto`: as many as
            the rank has cores for beside its own threads, 16 at most.
        key_field: JSON field that identifies a sample.
        caption: a policy, or a list of fields: an extension (`txt`) or a JSON value
            (`json:caption`); the first with text is used.
        max_error_rate: fraction of samples that may be replaced or left out before the run stops.
        views: further views of each image; NAME becomes the batch entry `image.NAME`.
        texts: further texts, as `caption` or a `Text` with a tokenizer of its own; NAME becomes the
            batch entry `text.NAME`.

    Attributes:
        first_step: the step the training loader starts at.
        seed, image_size, context_length, steps, word_reducers: set by `connect`.
        sources: settings of single sources, by name.
        sidecars: joined tensors by name.
        same_as, caption_same_as: entries that determine the main image and caption.
        streams: further streams, by name.
        turns: whose turn a step is, as numbers of steps by stream; None: that of all of them.
        reads_images: whether batches have images; False where no term reads any.
        caveat: note to log when a run starts.
    """

    caveat = ""

    def __init__(
        self,
        tokenizer: Tokenizer | None = None,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        num_workers: int | Literal["auto"] = 2,
        key_field: str = "key",
        caption: tuple[str, ...] | CaptionPolicy = ("txt",),
        max_error_rate: float = 0.01,
        views: dict[str, View] | None = None,
        texts: dict[str, tuple[str, ...] | CaptionPolicy | Text] | None = None,
    ):
        super().__init__()
        if isinstance(num_workers, int) and num_workers < 0:
            raise ValueError(
                f"num_workers={num_workers}: give 0 (no loader processes) or more, or auto"
            )
        self.tokenizer: Tokenizer = ClipTokenizer() if tokenizer is None else tokenizer
        self.train_transform = train_transform or TrainTransform()
        self.eval_transform = eval_transform or EvalTransform()
        self.num_workers = num_workers
        self.key_field = key_field
        self.caption = policy_of(caption)
        self.max_error_rate = max_error_rate
        self.views = views or {}
        self.texts = {
            name: text if isinstance(text, Text) else Text(text)
            for name, text in (texts or {}).items()
        }
        check_no_slash("data.views", self.views)
        check_no_slash("data.texts", self.texts)
        self.sources: Mapping[str, Source] = {}
        self.sidecars: Mapping[str, Sidecar] = {}
        self.same_as: str | None = None
        self.caption_same_as: str | None = None
        self.first_step = 0
        self.steps: Steps | None = None
        self.seed = 0
        self.image_size = 0
        self.context_length = 0
        self.word_reducers: Sequence[WordReducer | None] = ()
        self.streams: Mapping[str, Pairs] = {}
        self.turns: Mapping[str, int] | None = None
        self.reads_images = True

    @property
    def every_stream(self) -> dict[str, "Pairs"]:
        """All streams by name, this one under "" first."""
        return {MAIN: self, **self.streams}

    @property
    def weighted(self) -> list[str]:
        """The streams whose batches have a `weight`, which losses then have to read."""
        return [name for name, stream in self.every_stream.items() if stream.has_weights]

    @property
    @abstractmethod
    def source_names(self) -> list[str]:
        """Names of the sources, in the order of the batches' `source`."""

    @property
    @abstractmethod
    def shard_urls(self) -> Sequence[str]:
        """Addresses of the shards, in the order of the batches' `shard`."""

    @property
    @abstractmethod
    def epoch_size(self) -> int | None:
        """Samples of one pass over the data; None: unknown."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of the data, which must not change when a run is resumed."""

    @property
    def has_weights(self) -> bool:
        """Whether this stream's batches have a `weight`."""
        return False

    @abstractmethod
    def check(self, num_nodes: int = 1) -> None:
        """Checks the data before training starts.

        Args:
            num_nodes: machines of the run, each of which caches shards.

        Raises:
            ValueError: something is missing, cut off, contradictory, or too small.
        """

    @cached_property
    def ledger(self) -> ErrorLedger:
        """Counts of unusable samples; `train` merges and checks them."""
        return ErrorLedger(self.source_names, self.max_error_rate, urls=self.shard_urls)

    def reads(self, entry: str) -> tuple[Tokenizer, int]:
        """Returns tokenizer and context length of a text entry (`text`, `text.NAME`)."""
        text = self.texts.get(entry.partition(".")[2], Text())
        return text.tokenizer or self.tokenizer, text.context_length or self.context_length

    @property
    def readers(self) -> dict[str, tuple[Tokenizer, int]]:
        """Tokenizer and context length of every text entry, `text` first."""
        return {entry: self.reads(entry) for entry in ("text", *(f"text.{n}" for n in self.texts))}

    def connect(
        self,
        steps: Steps,
        seed: int,
        image_size: int,
        context_length: int,
        word_reducers: Sequence[WordReducer | None] = (),
    ) -> None:
        """Sets what the other slots decide.

        Args:
            steps: maps steps to positions.
            seed: seed of the order and the augmentations.
            image_size: side in pixels.
            context_length: tokens a caption.
            word_reducers: shortens captions, by phase; none by default.
        """
        self.steps = steps
        self.seed = seed
        self.image_size = image_size
        self.context_length = context_length
        self.word_reducers = word_reducers

    def check_needs(self, needs: Collection[str]) -> None:
        """Takes note of what terms read: streams of which they read no image decode none.

        Args:
            needs: names of features and batch entries, those of a stream as `NAME/...`.

        Raises:
            ValueError: a term reads a stream that there is not, or none reads one that there is.
        """
        read = {name.rpartition("/")[0] for name in needs}
        if unknown := sorted(read - self.every_stream.keys()):
            there = ", ".join([MAIN_NAME, *self.streams])
            raise ValueError(
                f"objective.streams names '{unknown[0]}', and data has the streams {there}: add "
                f"data.streams.{unknown[0]}, or name one of these"
            )
        if idle := sorted(self.streams.keys() - read):
            raise ValueError(
                f"no term reads data.streams.{idle[0]}: give it one in objective.streams (TERM: "
                f"{idle[0]}), or leave the stream out"
            )
        for name, stream in self.every_stream.items():
            own = (need.rpartition("/") for need in needs)
            stream.reads_images = any(
                of_stream == name and "image" in need.split(".") for of_stream, _, need in own
            )

    def error_counts(self) -> dict[str, int]:
        """Returns numbers of samples and errors by cause and source, for the log."""
        counts: dict[str, int] = {}
        for name, stream in self.every_stream.items():
            counts |= named(name, stream.ledger.summary())
        return counts

    def batch_rows(self, step: int, world_size: int) -> dict[str, int]:
        """Returns the rows of every rank's batch of each stream at a step; 0: it takes none."""
        steps = {name: stream.steps for name, stream in self.every_stream.items()}
        return {n: s.batch_size(step) // world_size for n, s in steps.items() if s is not None}

    def require_steps(self, world_size: int) -> Steps:
        """Returns the steps set by `connect`.

        Raises:
            ValueError: `connect` was not called, or a batch cannot be split over the ranks.
        """
        if self.steps is None:
            raise ValueError(f"{type(self).__name__}.connect must be called before training starts")
        self.steps.check_world_size(world_size)
        return self.steps

    def rank_and_world_size(self) -> tuple[int, int]:
        """Returns those of the trainer, or of one process without a trainer."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def workers(self) -> int:
        """Returns the number of loader processes of this rank."""
        if isinstance(self.num_workers, int):
            return self.num_workers
        local = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's
        return fitting_workers(self.trainer.num_devices if self.trainer else int(local))

    def recipe(self) -> Recipe:
        """Returns the recipe of every sample.

        Raises:
            ValueError: a view takes its augmentation from an unknown entry.
        """
        main = View(self.train_transform, same_as=self.same_as)
        views = {"image": main} | {f"image.{name}": view for name, view in self.views.items()}
        if not self.reads_images:
            views = {}
        names = self.source_names
        sources = {name: self.sources.get(name, Source()) for name in names}
        captions = {
            name: policy_of(source.caption) if source.caption else self.caption
            for name, source in sources.items()
        }
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
            key_fields={
                name: source.key_field or self.key_field for name, source in sources.items()
            },
            sidecars=self.sidecars,
            caption_same_as=self.caption_same_as,
        )

    def loader(self, dataset: Dataset, **options: Any) -> DataLoader:
        """Returns the loader over a dataset of batches, or of parts of them."""
        num_workers = self.workers()
        options_of_workers: dict[str, Any] = {}
        if num_workers:
            # Forked workers start at once and notice when a killed parent is gone. Those of a fork
            # server, torch's newer default, import everything again and wait for ever.
            options_of_workers = {
                "persistent_workers": True,
                "prefetch_factor": PREFETCH,
                "multiprocessing_context": "fork",
            }
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            **options_of_workers,
            **options,
        )

    def on_before_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> list[Batch]:
        """Counts unusable samples while the batch is still on the host."""
        streams = self.every_stream
        for part in batch:
            for name, entries in by_stream(part).items():
                streams[name].ledger.update(entries)
        return batch

    def on_after_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> Batch:
        """Joins the parts on the device."""
        return join(batch)

    def go_on(self, step: int, skipped: Mapping[str, Any]) -> None:
        """Starts after so many steps, with the samples that a run has skipped.

        Args:
            step: the first one.
            skipped: the state of the run's data; see `Steps.left_out`.
        """
        self.first_step = step
        for name, stream in self.every_stream.items():
            state = skipped if name == MAIN else skipped.get("streams", {}).get(name, {})
            if stream.steps is not None:
                rows = state.get("left_out", [])
                stream.steps.left_out = [(int(first), int(samples)) for first, samples in rows]

    def pass_over(self, state: dict[str, Any], step: int, end: int) -> int:
        """Makes a state of `step` go on behind the samples of all steps before `end`.

        Returns:
            The samples that are skipped, of all streams.
        """
        num_skipped = 0
        for name, stream in self.every_stream.items():
            assert stream.steps is not None
            # A checkpoint of an earlier stage may know nothing of the stream.
            streams = state.setdefault("streams", {})
            of_stream = state if name == MAIN else streams.setdefault(name, {})
            of_stream["left_out"] = stream.steps.passing_over(step, end)
            num_skipped += of_stream["left_out"][-1][1]
        return num_skipped

    def state_dict(self) -> dict[str, Any]:
        """Returns the next step, and skipped samples and errors by stream."""
        step = self.trainer.global_step if self.trainer else self.first_step
        states = {
            name: {
                "left_out": [] if stream.steps is None else list(stream.steps.left_out),
                "ledger": stream.ledger.state_dict(),
            }
            for name, stream in self.every_stream.items()
        }
        own = states.pop(MAIN)
        return own | {"step": step, "streams": states, "fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.go_on(int(state_dict["step"]), state_dict)
        self.ledger.load_state_dict(state_dict["ledger"])
        for name, stream in self.streams.items():
            stream.ledger.load_state_dict(state_dict["streams"][name]["ledger"])


def check_no_slash(key: str, names: Collection[str]) -> None:
    """Refuses names that would be read as those of a stream's entries.

    Raises:
        ValueError: there is one.
    """
    if found := next((name for name in names if "/" in name), None):
        raise ValueError(
            f"{key} has the name '{found}': what stands before a slash names a stream of "
            "data.streams; leave the slash out"
        )
