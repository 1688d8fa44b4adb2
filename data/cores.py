"""Cores of this machine: those of a training process, and those of its loader workers.

In: how many training processes share the machine, and what the scheduler or the container leaves to
them. Out: numbers of threads and of loader workers.
"""

import math
import os
from pathlib import Path

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
