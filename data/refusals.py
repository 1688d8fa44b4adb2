"""Errors that are a sentence for the user, and how a loader worker hands one over.

A `ValueError` that our own code raises is a message to the user: the offending value and the fix.
The same type raised inside a library is a defect, and its stack trace is worth more than its text.
From a worker the message travels as a `Refusal`: torch would wrap the error in the worker's trace.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Refusal:
    """What a worker hands over in place of a batch: the text of a ValueError."""

    message: str


def is_refusal(error: BaseException) -> bool:
    """Tells whether our own code raised an error for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return False
    raised_in = Path(frames[-1].filename).resolve()
    return raised_in.is_relative_to(ROOT) and ".venv" not in raised_in.parts


def refusal(error: ValueError) -> Refusal:
    """Returns what a worker hands over; in the training process, and for a defect, raises."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is None or not is_refusal(error):
        raise error
    return Refusal(str(error))
