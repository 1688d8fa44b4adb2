"""Rewinding: the fit ends at a row of spikes and is resumed from a checkpoint before it.

In: the row of steps that the guard left out. Out: that checkpoint, changed to skip the samples
since, and no later one; the caller of the fit resumes from it as from any other. The samples to
skip are a function of the row, not of when it is detected, so that a kill or a stop in between
changes nothing.
"""

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from ...data.pairs import Pairs
from ...models.weights import damage
from ..module import ContrastiveModule
from ..screen import log_line
from ..spike_guard import SpikeGuard
from .checkpoint import Checkpoints, change, checkpoints_in, step_of
from .disk import remove


class RewindingCheckpoints(Checkpoints):
    """Saves like `Checkpoints`; at log steps and before it saves, checks whether to rewind.

    There is a checkpoint from the first step on. It goes back to regular ones only: where a run was
    stopped must not change where it goes on.

    Attributes:
        rewound_to: the step from which this fit, which has ended, is to be resumed.
    """

    rewound_to: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks that enough files are kept for one to be left from before a row of spikes."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, ContrastiveModule) and pl_module.guard.spikes
        guard, spikes = pl_module.guard, pl_module.guard.spikes
        needed = max(spikes.patience, guard.max_nonfinite + 1) + spikes.margin
        if self.keep and self.every_n_steps * (self.keep - 1) < needed:
            raise ValueError(
                f"guard.spikes.then is 'rewind', and {self.keep} checkpoints, one every "
                f"{self.every_n_steps} steps, may all be younger than a row of steps left out "
                f"(with its margin {needed} steps, by guard.max_nonfinite and "
                "guard.spikes.patience); raise checkpoint.keep or checkpoint.every_n_steps"
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Rewinds if the guard has left out a row of steps, else saves."""
        assert isinstance(pl_module, ContrastiveModule)
        step = trainer.global_step
        logs = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        looks = logs or self.is_regular(step) or step == trainer.max_steps
        # Not at a stop in between: the totals would miss what an undisturbed run counts until then.
        if looks and (row := pl_module.guard.row_to_skip()):
            self._go_back(trainer, pl_module.guard, *row)
            return
        super().on_train_batch_end(trainer, pl_module, *args)

    def is_regular(self, step: int) -> bool:
        """So that a row in the first `every_n_steps` steps has somewhere to go back to."""
        return step == 1 or super().is_regular(step)

    def _go_back(self, trainer: pl.Trainer, guard: SpikeGuard, begin: int, end: int) -> None:
        """Prepares the checkpoint to be resumed from (collective) and stops the fit."""
        assert guard.spikes is not None
        self.settle()
        data: Pairs = trainer.datamodule  # type: ignore[attr-defined]
        row = f"steps {begin + 1} to {end} were left out in a row (guard.spikes)"
        if int(guard.state["rewinds"]) >= guard.spikes.max_rewinds:
            raise ValueError(
                f"{row}, and the run has gone back {guard.spikes.max_rewinds} times already "
                "(guard.spikes.max_rewinds); lower the learning rate, clip harder, or let the "
                "guard accept the new level (guard.spikes.then=accept)"
            )
        prepared = None
        if trainer.is_global_zero:
            prepared = self._prepare(data, guard, begin, end)
        error, step, samples = self._control.gather(prepared)[0]
        if error:
            raise ValueError(f"{row}, and the run cannot go back: {error}")
        if trainer.is_global_zero:
            log_line(
                f"{row}: going back to step {step}, and on behind the {samples} samples since",
                sys.stderr,
            )
        self.rewound_to, trainer.should_stop = step, True

    def _prepare(
        self, data: Pairs, guard: SpikeGuard, begin: int, end: int
    ) -> tuple[str, int, int]:
        """Returns what went wrong, if anything, the step gone back to, and the samples since."""
        assert guard.spikes is not None
        latest = begin - guard.spikes.margin
        path = self._last_before(latest)
        if path is None:
            return (
                f"there is no whole checkpoint of step {latest} or before, of those every "
                f"{self.every_n_steps} steps (checkpoint.every_n_steps)",
                0,
                0,
            )
        try:
            # Later ones first: a kill in between makes the run come here once more.
            for later in checkpoints_in(self.folder.parent):
                if step_of(later) > step_of(path):
                    remove(later)
            with change(path) as state:
                samples = data.pass_over(state[type(data).__qualname__], step_of(path), end)
                past = state["counterpoint"]["guard"]
                past |= {name: guard.state[name].cpu() for name in ("nonfinite", "spikes")}
                past["rewinds"] = guard.state["rewinds"].cpu() + 1
        except OSError as error:
            return f"{error.strerror or error}", 0, 0
        return "", step_of(path), samples

    def _last_before(self, step: int) -> Path | None:
        """The newest whole regular checkpoint of that step or an earlier one."""
        paths = sorted(checkpoints_in(self.folder.parent), key=step_of, reverse=True)
        fit = (p for p in paths if step_of(p) <= step and self.is_regular(step_of(p)))
        return next((path for path in fit if damage(path) is None), None)
