"""Loader workers: for how many there are cores, and how each starts.

In: how many training processes share the machine, and what the scheduler or the container leaves to
them; a fresh worker process. Out: numbers of cores and workers; the same process with one compute
thread, which ignores signals for the training process.
"""

import gc
import math
import os
import signal
import threading
import warnings
from pathlib import Path

import torch

OF_SRUN = "slurm-"  # what the name of a run of srun's tasks begins with
# Threads that a training process keeps busy beside its loader workers: Python's, that of the
# backward pass, and one that pins batches or talks to the network.
TRAINING = 3
# `auto`: no more workers than these, since each holds batches in memory; and how many a job asks
# cores for that does not know its machine yet.
MOST, USUAL = 16, 9


def cores_of(num_processes: int) -> int:
    """Returns how many cores each of this machine's training processes may use."""
    cores = len(os.sched_getaffinity(0))
    per_task = os.environ.get("SLURM_CPUS_PER_TASK")
    if per_task and os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(OF_SRUN):
        return min(cores, int(per_task))  # srun may have bound the task to these already
    quota = cpu_quota()
    cores = cores if quota is None else min(cores, math.ceil(quota))
    return max(1, cores // num_processes)


def cpu_quota(file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float | None:
    """Returns how many cores' time the container may use (Docker's --cpus); None: no limit."""
    try:
        quota, period = file.read_text().split()
    except OSError:
        return None
    return None if quota == "max" else int(quota) / int(period)


def num_workers(num_processes: int) -> int:
    """Returns the number of loader workers for which each training process has cores."""
    return max(1, min(MOST, cores_of(num_processes) - TRAINING))


def cores_for(workers: int | str) -> int:
    """Returns how many cores a job should ask for, for each training process."""
    return TRAINING + (workers if isinstance(workers, int) else USUAL)


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
