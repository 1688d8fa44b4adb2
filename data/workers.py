"""What a loader worker does when it starts, and how it says what is wrong.

In: the fresh worker process. Out: the same process with one thread for mathematics, and deaf to
signals meant for the training process. An error that has a sentence for the user travels to the
training process as that sentence: torch would wrap it in the worker's stack trace.
"""

import os
import signal
import threading
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Refusal:
    """What a worker hands over in place of a batch: the text of a ValueError."""

    message: str


def refusal(error: ValueError) -> Refusal | None:
    """Returns an error that the data engine raised for the user; None for a library's."""
    raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return Refusal(str(error)) if raised_in.is_relative_to(HERE) else None


def start_worker(worker: int) -> None:
    """Prepares a loader worker.

    Ctrl-C, and a scheduler's SIGTERM and SIGUSR1, reach every process of the job, yet a run that is
    asked to stop still finishes its step and saves: its workers have to outlive the signal. They go
    when their parent tells them to, or dies (the loader watches for that).

    Args:
        worker: Number of the worker.
    """
    torch.set_num_threads(1)
    # What is odd about single pictures is counted by the loader, not printed by every worker.
    warnings.filterwarnings("ignore", module="PIL")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked here and in every later thread, so that only the one that waits receives it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """Ends this process at the first SIGTERM that its parent itself sends."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (parent, os.getpid()):
        pass
    os._exit(0)
