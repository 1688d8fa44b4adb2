"""Stop on a signal: all ranks after the same step, with a checkpoint.

Ranks agree over a gloo group on the CPU, so that they neither wait for the device nor mix with the
collectives of the losses.
"""

import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from ..distributed import ControlGroup
from ..lightning_internals import leave_signals_to_callbacks

# Schedulers end a job with SIGTERM and announce its end with SIGUSR1; users press Ctrl-C, or close
# the terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
# gloo's ring sends two messages a rank, one after the other, of about 40 microseconds each: 40 ms
# for 512 ranks. Agreements take a twentieth of the time at most, so that not every short step of
# many ranks has one; and few steps lie between two, should they suddenly take longer.
MICROSECONDS_A_RANK, MOST_STEPS = 2 * 40 * 20, 10


class StopOnSignal(pl.Callback):
    """On SIGTERM, SIGUSR1, SIGINT or SIGHUP to any rank, all ranks stop after the same step.

    An agreement begins every step, or every few steps of many ranks. It is taken when the next one
    begins, so that no step waits for it; the distance between them is agreed as well. A second
    SIGINT stops at once.

    Attributes:
        signum: the signal that stopped the run, the same on every rank; None: nothing did.
    """

    def __init__(self):
        self.signum: int | None = None
        self._received = 0
        self._previous: dict[int, Any] = {}
        self._pending: Callable[[], list[int]] = lambda: [0, sys.maxsize]  # no signal; not known
        self._next = 0
        self._longest = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replaces Lightning's handlers, which stop without a checkpoint, and its agreement."""
        leave_signals_to_callbacks(trainer)
        self._ended = time.monotonic()
        self._control = ControlGroup()
        for number in STOP_SIGNALS:
            # nohup ignores SIGHUP for its command.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Takes the last agreement and starts the next one, at steps that all ranks know."""
        now = time.monotonic()
        self._longest, self._ended = max(self._longest, now - self._ended), now
        if self._control.group is None:
            self._stop(trainer, self._received)
        elif (step := trainer.global_step) >= self._next:
            signum, longest = self._pending()
            self._stop(trainer, signum)
            if not trainer.should_stop:
                between = MICROSECONDS_A_RANK * (trainer.world_size - 1) // max(longest, 1)
                self._next = step + min(max(between, 1), MOST_STEPS)
                mine = [self._received, int(1e6 * self._longest)]
                self._pending, self._longest = self._control.start_highest(mine), 0.0

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the last agreement: a callback may have ended the fit in between."""
        if self.signum is None:
            self._stop(trainer, self._pending()[0])

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
