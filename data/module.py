"""The data of a run as Lightning wants it.

In: a manifest and the choices of the `data` slot; from `fit`, through `connect`, the schedule, the
seed and the model's sizes. Out: the training loader, and one integer to resume from.
"""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from .dataset import Batch, SampleLoader, StepDataset, StepSampler
from .errors import ErrorLedger
from .manifest import Manifest
from .plan import Plan
from .schedule import Schedule
from .tokenize import ClipTokenizer, Tokenizer
from .transforms import EvalTransform, TrainTransform, Transform
from .workers import start_worker


class PairsDataModule(LightningDataModule):
    """Image-text pairs from WebDataset shards.

    Args:
        manifest: Path of the file `counterpoint data index` wrote.
        tokenizer: Texts to token ids; CLIP's by default.
        train_transform: Pictures in training; random crops by default.
        eval_transform: Pictures in evaluation; the centre crop by default.
        num_workers: Loader processes a rank; 0 loads in the training process.
        lanes: Parallel walks of the plan. Part of what defines the order of samples.
        block: Samples shuffled together within a lane. Part of what defines the order, too.
        key_field: JSON field that identifies a sample.
        caption: Where captions are looked for: an extension (`txt`) or a JSON value
            (`json:caption`); the first that has text is taken.
        max_error_rate: Samples that may be replaced, per sample, before the run stops.

    Attributes:
        first_step: The step the training loader starts at.
        seed, image_size, context_length, schedule: Set by `connect`.
    """

    def __init__(
        self,
        manifest: str,
        tokenizer: Tokenizer | None = None,
        train_transform: Transform | None = None,
        eval_transform: Transform | None = None,
        num_workers: int = 2,
        lanes: int = 16,
        block: int = 4096,
        key_field: str = "key",
        caption: tuple[str, ...] = ("txt",),
        max_error_rate: float = 0.01,
    ):
        super().__init__()
        self.manifest_path = manifest
        self.tokenizer: Tokenizer = ClipTokenizer() if tokenizer is None else tokenizer
        self.train_transform = train_transform or TrainTransform()
        self.eval_transform = eval_transform or EvalTransform()
        self.num_workers = num_workers
        self.lanes = lanes
        self.block = block
        self.key_field = key_field
        self.caption = caption
        self.max_error_rate = max_error_rate
        self.first_step = 0
        self.schedule: Schedule | None = None
        self.seed = 0
        self.image_size = 0
        self.context_length = 0
        self._manifest: Manifest | None = None
        self._ledger: ErrorLedger | None = None

    @property
    def manifest(self) -> Manifest:
        """The shards, loaded when first asked for."""
        if self._manifest is None:
            self._manifest = Manifest.load(self.manifest_path)
        return self._manifest

    @property
    def ledger(self) -> ErrorLedger:
        """Counts of replaced samples; `train` feeds, merges and checks it."""
        if self._ledger is None:
            self._ledger = ErrorLedger(self.manifest.sources, self.max_error_rate)
        return self._ledger

    def connect(self, schedule: Schedule, seed: int, image_size: int, context_length: int) -> None:
        """Takes what the other slots decide, and looks at the shard files.

        Args:
            schedule: Steps to positions.
            seed: Of the order and the augmentations.
            image_size: Side in pixels.
            context_length: Tokens a caption.

        Raises:
            ValueError: The manifest is missing or empty, or shards are missing or cut off.
        """
        self.manifest.check_files()
        self.schedule = schedule
        self.seed = seed
        self.image_size = image_size
        self.context_length = context_length

    def train_dataset(self, rank: int = 0, world_size: int = 1) -> StepDataset:
        """Returns the batches of one rank, by step."""
        if self.schedule is None:
            raise ValueError("PairsDataModule.connect must be called before training starts")
        self.schedule.check_world_size(world_size)
        plan = Plan(self.manifest.counts, self.seed, self.lanes, self.block)
        loader = SampleLoader(
            self.manifest,
            self.train_transform,
            self.seed,
            self.image_size,
            self.key_field,
            self.caption,
        )
        return StepDataset(
            plan, self.schedule, loader, self.tokenizer, self.context_length, rank, world_size
        )

    def train_dataloader(self) -> DataLoader:
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
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=StepSampler(self.first_step, len(dataset)),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=start_worker,
            **workers,
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Counts replaced samples while the batch is still on the host."""
        self.ledger.update(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the step to continue from, the error totals and what the data was."""
        step = self.trainer.global_step if self.trainer else self.first_step
        return {
            "step": step,
            "ledger": self.ledger.state_dict(),
            "fingerprint": self.manifest.fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues from `state_dict`.

        Raises:
            ValueError: The manifest is not the one the run began with.
        """
        if state_dict["fingerprint"] != self.manifest.fingerprint:
            raise ValueError(
                f"the manifest '{self.manifest_path}' lists other shards than the run began with; "
                "resume with that manifest, or start a new run with --init_from"
            )
        self.first_step = int(state_dict["step"])
        self.ledger.load_state_dict(state_dict["ledger"])
