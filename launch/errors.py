"""Which exceptions a user sees as one sentence, and which as a stack trace.

A `ValueError` raised by our own code is a message to the user (`data/refusals.py`). Lightning has a
type of its own for what the user has configured. A full disk is reported in one sentence wherever
it occurs.
"""

import errno
import os
import traceback

from ..data.refusals import is_refusal

# Lightning's, where processes begin to differ.
TRAINING = "lightning/pytorch/trainer/"


def sentence(error: BaseException) -> str | None:
    """Returns the one-line message for `error`, or None when the stack trace should be shown.

    The environment variable COUNTERPOINT_TRACEBACK=1 always shows the trace.
    """
    if os.environ.get("COUNTERPOINT_TRACEBACK") == "1":
        return None
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" ({error.filename})" if error.filename else ""
        return f"no space left on the disk{where}; free some and continue with `fit --resume`"
    if any(kind.__name__ == "MisconfigurationException" for kind in type(error).__mro__):
        return f"trainer: {' '.join(str(error).split())} (counterpoint fit --help trainer)"
    return str(error) if is_refusal(error) else None


def reports_for_its_node(error: BaseException) -> bool:
    """Whether this process is the one of its node that prints an error of them all.

    Until training begins, all processes of a node do the same with the same files, so that each
    meets the same mistake. What one meets in training may be its own. Processes that Lightning
    starts are there only because the first one has come so far.
    """
    env = os.environ
    frames = traceback.extract_tb(error.__traceback__)
    if any(TRAINING in frame.filename for frame in frames):
        return True
    under_srun = int(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    if "TORCHELASTIC_RUN_ID" not in env and not under_srun:
        return True
    return int(env.get("LOCAL_RANK", env.get("SLURM_LOCALID", "0"))) == 0
