"""Lines on the screen, each with the time of day."""

import datetime
import sys
from typing import TextIO


def log_line(text: str, file: TextIO | None = None) -> None:
    """Prints `HH:MM:SS  text` at once; call it on one rank only.

    Args:
        text: one line.
        file: `sys.stderr` for what goes wrong; None: `sys.stdout`.
    """
    clock = f"{datetime.datetime.now():%H:%M:%S}"
    print(f"{clock}  {text}", file=file or sys.stdout, flush=True)
