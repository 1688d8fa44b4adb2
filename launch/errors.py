"""Which exceptions a user sees as one sentence, and which as a stack trace.

A `ValueError` raised by our own code is a message to the user (house rule: the offending value and
the fix). The same type raised deep inside a library is a defect, and its trace is worth more than
its text. A full disk is told in one sentence wherever it strikes.
"""

import errno
import os
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def sentence(error: BaseException) -> str | None:
    """Returns the one-line message for `error`, or None when the stack trace should be shown.

    The environment variable COUNTERPOINT_TRACEBACK=1 always shows the trace.
    """
    if os.environ.get("COUNTERPOINT_TRACEBACK") == "1":
        return None
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the disk{where}; free some and continue with `fit --resume`"
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ValueError) and frames:
        raised_in = Path(frames[-1].filename).resolve()
        if raised_in.is_relative_to(ROOT) and ".venv" not in raised_in.parts:
            return str(error)
    return None
