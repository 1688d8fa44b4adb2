"""Lightning's EarlyStopping and ModelCheckpoint on what a run logs, which has no epochs.

In: the user's callbacks, the rows of the run. Out: EarlyStopping is called once for each new value
that it monitors, of a training row or of an evaluation, and the run ends after that step, on every
rank, with a checkpoint. A monitor that nothing logs ends the run at its first row.
"""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from .evaluation import Evaluate
from .metrics import MetricsFile
from .sample_errors import CountErrors


class ActOnMetrics(pl.Callback):
    """Calls EarlyStopping after a step's rows are logged and before the step is saved.

    Args:
        rows: the run's metrics file.
        evaluation: the callback that evaluates the run.
        errors: the callback whose totals a checkpoint of this step must hold.

    Attributes:
        stopped_by: callback and reason that ended the run; None: none did.
    """

    def __init__(self, rows: MetricsFile, evaluation: Evaluate, errors: CountErrors):
        self.rows, self.evaluation, self.errors = rows, evaluation, errors
        self.stopped_by: str | None = None
        self._monitored: list[EarlyStopping | ModelCheckpoint] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects the callbacks that monitor a value, which must be known before the end."""
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
        """Calls EarlyStopping on new values; refuses a monitor that nothing logs."""
        step = trainer.global_step
        if step not in self.rows.steps.values():
            return
        for callback in self._monitored:
            assert callback.monitor is not None
            if callback.monitor not in trainer.callback_metrics:
                self._check(callback, trainer)
            # A value that a callback logs for other callbacks alone counts as new in every row.
            elif self.rows.steps.get(callback.monitor, step) == step:
                self._call(callback, trainer, pl_module)
        if self.stopped_by is not None:
            self.errors.count(trainer)

    def _call(
        self,
        callback: EarlyStopping | ModelCheckpoint,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
    ) -> None:
        if not isinstance(callback, EarlyStopping):
            return
        # A run that stops for another reason must have counted this value when it resumes.
        stops, trainer.should_stop = trainer.should_stop, False
        # `check_on_train_epoch_end` decides which of the two acts; here they mean the same.
        callback.on_train_epoch_end(trainer, pl_module)
        callback.on_validation_end(trainer, pl_module)
        if trainer.should_stop and self.stopped_by is None:
            self.stopped_by = f"EarlyStopping ({callback.stopping_reason_message})"
        trainer.should_stop |= stops

    def _evaluated(self, callback: EarlyStopping | ModelCheckpoint) -> bool:
        """Whether the monitored value is one of the suite's."""
        return str(callback.monitor).startswith(self._tasks)

    @property
    def _tasks(self) -> tuple[str, ...]:
        """What names of the suite's values begin with."""
        suite = self.evaluation.suite
        return () if suite is None else tuple(f"{suite.name}/{task}/" for task in suite.tasks)

    def _check(self, callback: EarlyStopping | ModelCheckpoint, trainer: pl.Trainer) -> None:
        """Refuses a name that nothing has logged, unless an evaluation is still to come."""
        tasks, names = self._tasks, sorted(trainer.callback_metrics)
        to_come = bool(tasks) and not any(name.startswith(tasks) for name in names)
        if to_come and self._evaluated(callback):
            return
        more = f", and after evaluations {', '.join(tasks)}..." if to_come else ""
        raise ValueError(
            f"trainer.callbacks: {type(callback).__name__} monitors '{callback.monitor}', which "
            f"nothing logs; there are {', '.join(names)}{more}"
        )
