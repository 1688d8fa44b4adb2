"""Evaluation during training: every N steps and after the last one.

In: the run's evaluation settings. Out: a row of `SUITE/TASK/METRIC` values in every logger, and
after the last step `outcomes.npz`, with what each item contributed to them.
Training continues exactly as without an evaluation.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping

from ...data.validation import ValidationPairs
from ..checks import at_least
from ..evaluation.evaluate import evaluate, prepare
from ..evaluation.measures import base_of, show
from ..evaluation.outcomes import FILE, Outcomes, write_outcomes
from ..evaluation.suite import Suite
from ..module import ContrastiveModule
from ..screen import log_beside_bar, log_line
from .metrics import log_row


@dataclass
class EvaluationConfig:
    """When and on what a run is evaluated.

    Attributes:
        suite: name of a packaged suite or path of a suite file; None: no evaluation.
        every_n_steps: distance between evaluations; there is always one after the last step.
        batch_size: images or captions per tower call and process.
        data_root: folder that relative paths in the suite start from; None: the suite's own.
        tasks_at_once: of a large suite, the tasks of one evaluation, which take turns; None: all.
            The one after the last step has all.
    """

    suite: str | None = None
    every_n_steps: int = 1_000_000_000
    batch_size: int = 256
    data_root: str | None = None
    tasks_at_once: int | None = None

    def __post_init__(self) -> None:
        off = "evaluation.suite=null turns all off, that after the last step, too"
        at_least("evaluation.every_n_steps", self.every_n_steps, 1, off)
        at_least("evaluation.batch_size", self.batch_size, 1)
        if self.tasks_at_once is not None:
            at_least("evaluation.tasks_at_once", self.tasks_at_once, 1, "null evaluates all")


class Evaluate(pl.Callback):
    """Runs a suite, if there is one, and logs the results; decoded images are kept in memory.

    Args:
        config: when and how.
        suite: None: no evaluation.
        run_dir: where the outcomes go.
    """

    def __init__(self, config: EvaluationConfig, suite: Suite | None, run_dir: Path):
        self.config = config
        self.suite = suite
        self.run_dir = run_dir

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks the data before hours of training depend on it."""
        if self.suite is not None:
            image_sets = prepare(self.suite)
            if self.suite.note and trainer.is_global_zero:
                log_line(f"{self.suite.name}: {self.suite.note}")
            for images in image_sets if trainer.is_global_zero else ():
                if images.note:
                    log_line(f"{self.suite.name}: {images.note}")
                shards = trainer.datamodule.shard_urls  # type: ignore[attr-defined]
                if isinstance(images, ValidationPairs) and (seen := images.shared_with(shards)):
                    log_line(
                        f"{self.suite.name}: {seen} shards of {images.urls[0]} are trained on as "
                        "well, so what is measured there says nothing about new pairs; index with "
                        "--holdout again",
                        sys.stderr,
                    )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        step = trainer.global_step
        if self.suite is None:
            return
        if step % self.config.every_n_steps == 0 or step == trainer.max_steps:
            with as_validation(trainer, pl_module, self):
                outcomes: dict[str, Outcomes] = {}
                suite = self.part(self.suite, step, is_last=step == trainer.max_steps)
                values = self._evaluate(trainer, pl_module, suite, outcomes)
                log_row(trainer, values, step)
            if step == trainer.max_steps and trainer.is_global_zero:
                write_outcomes(self.run_dir / FILE, outcomes)
            if trainer.is_global_zero:
                log_beside_bar(trainer, f"step {step}  {screen_line(values)}")

    def part(self, suite: Suite, step: int, is_last: bool) -> Suite:
        """Returns the tasks of an evaluation: a function of the step, however often a run stops."""
        count = self.config.tasks_at_once
        if count is None or is_last:
            return suite
        return suite.turn(step // self.config.every_n_steps - 1, count)

    def _evaluate(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        suite: Suite,
        outcomes: dict[str, Outcomes],
    ) -> dict[str, float]:
        assert isinstance(pl_module, ContrastiveModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        return evaluate(
            pl_module.model,
            suite,
            data.tokenizer,
            data.eval_transform,
            device=pl_module.device,
            precision=trainer.precision_plugin.forward_context,
            batch_size=self.config.batch_size,
            metric=pl_module.objective.metric(pl_module.tensors.value),
            logit_scale=float(pl_module.tensors.value(pl_module.model.logit_scale).exp()),
            outcomes=outcomes,
        )


@contextmanager
def as_validation(
    trainer: pl.Trainer, pl_module: pl.LightningModule, caller: pl.Callback
) -> Iterator[None]:
    """Calls the other callbacks' validation hooks around an evaluation.

    ModelCheckpoint saves in them, Optuna prunes, Ray reports. EarlyStopping's are called once for
    each value that it monitors, which need not be one of an evaluation (`early_stopping`).
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    others = [c for c in callbacks if c is not caller and not isinstance(c, EarlyStopping)]
    trainer.validating = True
    try:
        for callback in others:
            callback.on_validation_start(trainer, pl_module)
        for callback in others:
            callback.on_validation_epoch_start(trainer, pl_module)
        yield
        for callback in others:
            callback.on_validation_epoch_end(trainer, pl_module)
        for callback in others:
            callback.on_validation_end(trainer, pl_module)
    finally:
        trainer.training = True


def screen_line(values: dict[str, float]) -> str:
    """Formats accuracies and recalls at one; of a task that has neither, all that it measures."""
    short = {name for name in values if name.endswith(("top1", "@1"))}
    tasks = {name.rpartition("/")[0] for name in short}
    return "  ".join(
        f"{base_of(name)} {show(name, value)}"
        for name, value in values.items()
        if name in short or name.rpartition("/")[0] not in tasks
    )
