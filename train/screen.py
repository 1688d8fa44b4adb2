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
    """Prints such a line above a TQDM bar, if the user has chosen one; other bars make room."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and bar.is_enabled:
        bar.print(f"{datetime.datetime.now():%H:%M:%S}  {text}")
    else:
        log_line(text)
