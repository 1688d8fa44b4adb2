"""User errors, and how a loader worker returns one.

A `ValueError` that our own code raises is a message to the user: the offending value and the fix.
The same type raised inside a library is a defect, which needs its stack trace. A worker returns the
message as a `Refusal`: torch would wrap the error in the worker's trace.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = {"site-packages", "dist-packages"}


@dataclass(frozen=True)
class Refusal:
    """The message of a ValueError, which a worker returns in place of a batch."""

    message: str


def is_refusal(error: BaseException) -> bool:
    """Whether our own code raised the error, for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    if not isinstance(error, ValueError) or not frames:
        return False
    raised_in = Path(frames[-1].filename).resolve()
    # A checkout may have an environment in it, and an environment this package.
    return raised_in.is_relative_to(ROOT) and not LIBRARIES & {*raised_in.relative_to(ROOT).parts}


def refusal(error: ValueError) -> Refusal:
    """Returns the message from a worker; raises in the training process, and for a defect."""
    from torch.utils.data import get_worker_info

    if get_worker_info() is None or not is_refusal(error):
        raise error
    return Refusal(str(error))
