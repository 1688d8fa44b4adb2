"""Process-wide settings, made before the first tensor.

In: the environment (torchrun, SLURM, plain). Out: ranks, thread and kernel choices that are better
than torch's defaults on the machine at hand.
"""

import logging
import os
import re
import resource
import sys
import warnings
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from ...data.workers import OF_SRUN, cores_of
from ...train.screen import log_line
from .rendezvous import use_own_store

# Settings of torch's allocator, the newest name first.
ALLOCATOR = "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"
FILES = 1 << 16  # that one process may need: a shard each, and a connection to each rank
_shared = ""  # the number of threads that this process has given itself


def is_first_process() -> bool:
    """True in the process that writes the run folder (rank 0, or not yet launched)."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def log(text: str) -> None:
    """Prints a line with the time of day, in the first process only."""
    if is_first_process():
        log_line(text)


def under_torchrun() -> tuple[int, int] | None:
    """Returns (processes on this node, nodes) under torchrun or srun, else None."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return local, int(os.environ["WORLD_SIZE"]) // local


def starts_again_by_itself() -> bool:
    """Whether this process is started again with the same command after a failure.

    torchrun does so with `--max_restarts`, and SLURM with a job that it put back into the queue.
    All processes of a run answer alike: torchrun's own count of restarts is 0 on a node that joined
    late.
    """
    counts = ("TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return any(int(os.environ.get(name) or 0) > 0 for name in counts)


def prepare() -> None:
    """Sets what has no configuration key."""
    adopt_slurm_tasks()
    use_own_store()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Collectives of NCCL that the hang watchdog can write down.
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "2000")
    # Else gloo connects every two ranks, at every start.
    os.environ.setdefault("TORCH_GLOO_LAZY_INIT", "1")
    prepare_cuda()
    allow_files()
    quieten()
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def prepare_cuda() -> None:
    """Sets what CUDA's libraries read when they begin, where the user has not."""
    # Triton 3.10 changes its default, and with it the last digits of our kernels.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    if sys.platform != "linux" or torch.version.cuda is None:
        return
    # Captions' parts have several lengths, whose blocks of memory would not serve one another.
    if not any(name in os.environ for name in ALLOCATOR):
        os.environ[ALLOCATOR[0]] = "expandable_segments:True"
    # Shards and losses talk in groups of their own, whose kernels must not wait crosswise.
    os.environ.setdefault("NCCL_LAUNCH_ORDER_IMPLICIT", "1")


def allow_files() -> None:
    """Raises the limit of open files, usually 1,024, as far as this user may.

    Loader workers keep hundreds of shards open, and inherit the connections of their process.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def share_cores(num_processes: int) -> None:
    """Gives this process its part of the cores as threads, unless OMP_NUM_THREADS says how many.

    torch takes every core that it sees, in each process, also those that a container may not use.
    (torchrun itself sets OMP_NUM_THREADS=1 where it is not set; loader workers have one thread.)
    """
    global _shared
    threads = cores_of(num_processes)
    is_open = os.environ.get("OMP_NUM_THREADS", _shared) == _shared
    if is_open and threads < torch.get_num_threads():
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = _shared = str(threads)  # else Lightning sets its own number


def choose_attention(precision: str | int | None) -> None:
    """Picks the attention kernels of CPUs: torch's fused one, but in bf16 plain matrix products.

    The backward pass of the fused one takes most of a small model's step in bf16
    (docs/benchmarks.md).
    """
    is_half = str(precision).startswith(("bf16", "16"))
    torch.backends.cuda.enable_flash_sdp(torch.cuda.is_available() or not is_half)


def adopt_slurm_tasks() -> None:
    """Gives the tasks of one `srun` the variables that torchrun gives its processes.

    So there is one way in which ranks are known, and Lightning's own handling of SLURM, which saves
    and requeues by other rules, is left out. A single task may still start processes itself.
    """
    env = os.environ
    world = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if "TORCHELASTIC_RUN_ID" in env or world == 1:
        return
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", str(world))
    equal = re.fullmatch(r"(\d+)(\(x\d+\))?", tasks)
    if equal is None:
        raise ValueError(
            f"srun runs {tasks} tasks per node; every node needs the same number: use "
            "--ntasks-per-node"
        )
    job = env.get("SLURM_JOB_ID", "0")
    first_node = SLURMEnvironment.resolve_root_node_address(
        env.get("SLURM_STEP_NODELIST", "127.0.0.1")
    )
    env.setdefault("MASTER_ADDR", first_node)
    env.setdefault("MASTER_PORT", str(15000 + int(job[-4:])))
    env |= {
        "RANK": env["SLURM_PROCID"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "GROUP_RANK": env["SLURM_NODEID"],
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": equal[1],
        "TORCHELASTIC_RUN_ID": f"{OF_SRUN}{job}",
    }


def cluster_plugins() -> list[Any]:
    """Lightning's plugin where it would guess wrong: a process that `srun` did not start.

    In an allocation of SLURM, Lightning takes any process for one of srun's tasks and waits for the
    others.
    """
    inside = "SLURM_JOB_ID" in os.environ and under_torchrun() is None
    return [LightningEnvironment()] if inside else []


def quieten() -> None:
    """Silences what Lightning logs about itself; its warnings about the run stay."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    # One "Initializing distributed" a rank, at every start.
    logging.getLogger("lightning.fabric.utilities.distributed").setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",  # torch's deprecation, in Lightning's own code
        ".*smaller than the logging interval.*",  # the last step is always logged
        ".*dataloader is not resumable.*",  # ours is: it starts at the stored step
        r".*module\(s\) in eval mode at the start.*",  # the student's average always is
        ".*overridden `transfer_batch_to_device`.*",  # the module's own is meant
    ):
        warnings.filterwarnings("ignore", message)
