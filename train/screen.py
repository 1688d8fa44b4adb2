"""Lines on the screen, each with the time of day."""

import datetime
import sys
from typing import TextIO

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar


def log_line(text: str, file: TextIO | None = None) -> None:
    """Prints `HH:MM:SS  text` at once, on the screen or into `file`; call it on one rank only."""
    clock = f"{datetime.datetime.now():%H:%M:%S}"
    print(f"{clock}  {text}", file=file or sys.stdout, flush=True)


def log_beside_bar(trainer: pl.Trainer, text: str) -> None:
    """The same, above a bar of TQDM's that the user has chosen; others make room themselves."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        bar.print(f"{datetime.datetime.now():%H:%M:%S}  {text}")
    else:
        log_line(text)
