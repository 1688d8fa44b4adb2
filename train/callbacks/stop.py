"""Small agreements between ranks: stop together, count together.

They go over a gloo group of their own, on the CPU, so that they neither wait for the device nor
mix with the collectives of the losses.
"""

import signal
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

# Of schedulers: to end (SIGTERM), to make room before the time is up (SIGUSR1); of users: Ctrl-C.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


# (all ranks, their gloo group): one for everybody who asks, since each connects every two ranks.
_shared: tuple[Any, Any] = (None, None)


class ControlGroup:
    """A gloo process group for host-side values; does nothing in a single process.

    Every rank makes it, and calls it, in the same order.
    """

    def __init__(self):
        global _shared
        self.group: Any = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            if _shared[0] is not dist.group.WORLD:
                _shared = dist.group.WORLD, dist.new_group(backend="gloo")
            self.group = _shared[1]

    def start_highest(self, number: int) -> Callable[[], int]:
        """Starts a maximum over ranks; the returned function waits for it."""
        if self.group is None:
            return lambda: number
        value = torch.tensor([number])
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def wait() -> int:
            assert work is not None
            work.wait()
            return int(value.item())

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's picklable value in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values


class StopOnSignal(pl.Callback):
    """On SIGTERM, SIGUSR1 or SIGINT to any rank, all ranks stop after the same step.

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
        """Replaces Lightning's handlers, which stop without a checkpoint."""
        self._control = ControlGroup()
        for number in STOP_SIGNALS:
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
        """Takes the last agreement: somebody else may have ended the fit."""
        if self.signum is None:
            self._stop(trainer, self._pending())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the handlers back."""
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
        # The first one says why: a scheduler that has asked to make room terminates in the end.
        self._received = self._received or signum
