"""Lightning's EarlyStopping and ModelCheckpoint on what a run logs, which has no epochs.

In: the user's callbacks, the rows of the run. Out: EarlyStopping looks once at each new value of
what it monitors, be it of a training row or of an evaluation, and the run ends after that step, on
every rank, with a checkpoint. A monitor that nothing logs ends the run at its first row.
"""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from .evaluation import Evaluate
from .metrics import MetricsFile
from .sample_errors import CountErrors


class ActOnMetrics(pl.Callback):
    """Runs after a step's rows are logged and before it is saved.

    Args:
        rows: the run's metrics file.
        evaluation: which evaluates the run.
        errors: of the samples, which a checkpoint of this step has to know.

    Attributes:
        stopped_by: what ended the run, in words; None: nothing did.
    """

    def __init__(self, rows: MetricsFile, evaluation: Evaluate, errors: CountErrors):
        self.rows, self.evaluation, self.errors = rows, evaluation, errors
        self.stopped_by: str | None = None
        self._monitored: list[EarlyStopping | ModelCheckpoint] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finds what is monitored.

        Raises:
            ValueError: a value that comes with an evaluation, and there is none before the end.
        """
        kinds = (EarlyStopping, ModelCheckpoint)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._monitored = [c for c in callbacks if isinstance(c, kinds) and c.monitor]
        every = self.evaluation.config.every_n_steps
        for callback in self._monitored:
            if not isinstance(callback, EarlyStopping) or not self._evaluated(callback):
                continue
            if every >= trainer.max_steps:
                raise ValueError(
                    f"trainer.callbacks: EarlyStopping monitors '{callback.monitor}', which is "
                    f"known after the last of the {trainer.max_steps} steps only: lower "
                    f"evaluation.every_n_steps ({every})"
                )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Lets EarlyStopping look at new values.

        Raises:
            ValueError: nothing logs what a callback monitors.
        """
        step = trainer.global_step
        if step not in self.rows.steps.values():
            return
        for callback in self._monitored:
            assert callback.monitor is not None
            if callback.monitor not in trainer.callback_metrics:
                self._check(callback, trainer)
            # What a callback logs for other callbacks alone is looked at with every row.
            elif self.rows.steps.get(callback.monitor, step) == step:
                self._look(callback, trainer, pl_module)
        if self.stopped_by is not None:
            self.errors.count(trainer)

    def _look(
        self,
        callback: EarlyStopping | ModelCheckpoint,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
    ) -> None:
        if not isinstance(callback, EarlyStopping):
            return
        # A run that is stopped for another reason has to know this value when it goes on.
        stops, trainer.should_stop = trainer.should_stop, False
        # One of the two looks, by `check_on_train_epoch_end`; here they mean the same.
        callback.on_train_epoch_end(trainer, pl_module)
        callback.on_validation_end(trainer, pl_module)
        if trainer.should_stop and self.stopped_by is None:
            self.stopped_by = f"EarlyStopping ({callback.stopping_reason_message})"
        trainer.should_stop |= stops

    def _evaluated(self, callback: EarlyStopping | ModelCheckpoint) -> bool:
        """Whether the name is one of the suite's."""
        suite = self.evaluation.suite
        return suite is not None and str(callback.monitor).startswith(
            tuple(f"{suite.name}/{task}/" for task in suite.tasks)
        )

    def _check(self, callback: EarlyStopping | ModelCheckpoint, trainer: pl.Trainer) -> None:
        """Refuses a name that nothing has logged, unless an evaluation is still to come."""
        suite = self.evaluation.suite
        tasks = [] if suite is None else [f"{suite.name}/{task}/" for task in suite.tasks]
        names = sorted(trainer.callback_metrics)
        to_come = bool(tasks) and not any(name.startswith(tuple(tasks)) for name in names)
        if to_come and self._evaluated(callback):
            return
        more = f", and after evaluations {', '.join(tasks)}..." if to_come else ""
        raise ValueError(
            f"trainer.callbacks: {type(callback).__name__} monitors '{callback.monitor}', which "
            f"nothing logs; there are {', '.join(names)}{more}"
        )
