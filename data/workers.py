"""Start of a loader worker.

In: the fresh worker process. Out: the same process with one compute thread, which ignores signals
for the training process.
"""

import gc
import os
import signal
import threading
import warnings

import torch


def start_worker(worker: int) -> None:
    """Prepares a loader worker.

    Ctrl-C, SIGHUP of a closed terminal, and a scheduler's SIGTERM and SIGUSR1 reach every process
    of the job, yet the run still finishes its step and saves: its workers have to survive the
    signal. They end when their parent signals them, or dies (the loader watches for that).

    Args:
        worker: number of the worker.
    """
    torch.set_num_threads(1)
    gc.enable()  # which the training process does by hand
    # Problems of single images are counted by the loader, not printed by every worker.
    warnings.filterwarnings("ignore", module="PIL")
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked here and in every later thread, so that only the waiting one receives it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    """Ends this process at the first SIGTERM that its parent itself sends."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid not in (parent, os.getpid()):
        pass
    os._exit(0)
