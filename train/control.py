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

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ControlGroup:
    """A gloo process group for host-side values; does nothing in a single process."""

    def __init__(self):
        self.group: dist.ProcessGroup | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)
            self.group = group

    def start_any(self, flag: bool) -> Callable[[], bool]:
        """Starts a logical or over ranks; the returned function waits for it."""
        if self.group is None:
            return lambda: flag
        value = torch.tensor([int(flag)])
        work = dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group, async_op=True)

        def wait() -> bool:
            assert work is not None
            work.wait()
            return bool(value.item())

        return wait

    def gather(self, value: Any) -> list[Any]:
        """Returns every rank's picklable value in rank order."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values


class StopOnSignal(pl.Callback):
    """On SIGTERM or SIGINT to any rank, all ranks stop after the same step.

    The flag of step n is agreed while step n + 1 runs, so that no step waits for it. A second
    SIGINT stops at once.

    Attributes:
        signum: the signal this process received, or None.
    """

    def __init__(self):
        self.signum: int | None = None
        self._previous: dict[int, Any] = {}
        self._pending: Callable[[], bool] = lambda: False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replaces Lightning's handlers, which stop without a checkpoint."""
        self._control = ControlGroup()
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Takes the agreement of the step before and starts that of this one."""
        if self._pending():
            trainer.should_stop = True
        if not trainer.should_stop:
            self._pending = self._control.start_any(self.signum is not None)
            if self._control.group is None and self._pending():
                trainer.should_stop = True

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _receive(self, signum: int, frame: Any) -> None:
        if self.signum == signal.SIGINT == signum:
            raise KeyboardInterrupt
        self.signum = signum
