"""A progress bar below the lines of a run, on a terminal.

In: the trainer's steps. Out: nothing where the screen is a file or a pipe, where rich (extra
`report`) is not installed, or where the user has chosen a progress bar of Lightning's.
"""

import sys
from collections.abc import Sequence
from typing import Any, TextIO, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar

from ...train.callbacks.metrics import Metrics
from .run_log import Copied


def progress(chosen: Sequence[pl.Callback], metrics: Metrics) -> list[pl.Callback]:
    """Returns the bar, with the latest of `metrics` beside it, unless there is to be none."""
    if any(isinstance(callback, ProgressBar) for callback in chosen) or not sys.stdout.isatty():
        return []
    try:
        import rich  # noqa: F401 - only whether it is there
    except ImportError:
        return []
    return [Bar(metrics)]


class Bar(pl.Callback):
    """Steps done, time taken and left; lines that are printed meanwhile scroll above it."""

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._bar: Any = None
        self._screens: list[tuple[Copied, TextIO]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draws it, on the first rank."""
        if not trainer.is_global_zero:
            return
        from rich import progress as parts
        from rich.console import Console
        from rich.file_proxy import FileProxy

        copied = isinstance(sys.stdout, Copied)
        console = Console(file=sys.stdout.screen if isinstance(sys.stdout, Copied) else sys.stdout)
        self._bar = parts.Progress(
            parts.BarColumn(bar_width=None),
            parts.TaskProgressColumn(),
            parts.TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            parts.TextColumn("{task.fields[note]}"),
            parts.TimeElapsedColumn(),
            parts.TextColumn("left"),
            parts.TimeRemainingColumn(),
            console=console,
            refresh_per_second=2,
            speed_estimate_period=300,
            # What is copied to the log is the lines, not the bar: they part before the screen.
            redirect_stdout=not copied,
            redirect_stderr=not copied,
        )
        steps = {"total": trainer.max_steps, "completed": trainer.global_step}
        self._task = self._bar.add_task("", note="", **steps)
        self._bar.start()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, Copied):
                self._screens.append((stream, stream.screen))
                stream.screen = cast(TextIO, FileProxy(console, stream.screen))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Moves it; nothing here waits for the device."""
        if self._bar is not None:
            latest = self._metrics.latest
            note = f"loss {latest['loss']:.3f}" if latest else ""
            self._bar.update(self._task, completed=trainer.global_step, note=note)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leaves it as it stands."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Gives the terminal back before anything is printed about what happened."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            for stream, screen in self._screens:
                stream.flush()
                stream.screen = screen
            self._screens = []
            self._bar.stop()
            self._bar = None
