"""Stop on a signal: all ranks after the same step, with a checkpoint.

Ranks agree over a gloo group on the CPU, so that they neither wait for the device nor mix with the
collectives of the losses.
"""

import signal
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from ..distributed import ControlGroup
from ..lightning_internals import leave_signals_to_callbacks

# Schedulers end a job with SIGTERM and announce its end with SIGUSR1; users press Ctrl-C, or close
# the terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)


class StopOnSignal(pl.Callback):
    """On SIGTERM, SIGUSR1, SIGINT or SIGHUP to any rank, all ranks stop after the same step.

    The flag of step n is agreed while step n + 1 runs, so that no step waits for it. A second
    SIGINT stops at once.

    Attributes:
        signum: the signal that stopped the run, the same on every rank; None: nothing did.
    """

    def __init__(self):
        self.signum: int | None = None
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._pending: Callable[[], int] = lambda: 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replaces Lightning's handlers, which stop without a checkpoint, and its agreement."""
        leave_signals_to_callbacks(trainer)
        self._control = ControlGroup()
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP for its command.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Takes the agreement of the step before and starts that of this one."""
        self._stop(trainer, self._pending())
        if not trainer.should_stop:
            self._pending = self._control.start_highest(self._received)
            if self._control.group is None:
                self._stop(trainer, self._pending())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the last agreement: a callback may have ended the fit in between."""
        if self.signum is None:
            self._stop(trainer, self._pending())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _stop(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            self.signum = signum
            trainer.should_stop = True

    def _receive(self, signum: int, frame: Any) -> None:
        if self._received == signal.SIGINT == signum:
            raise KeyboardInterrupt
        # The first signal is the reason: a scheduler that announces the end sends SIGTERM later.
        self._received = self._received or signum
