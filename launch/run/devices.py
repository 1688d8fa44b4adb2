"""Whether the machine has what `trainer.accelerator` and `trainer.devices` ask for.

In: the trainer's slot, before anything is built. Out: how many processes train. Lightning would
find the same later, in a stack trace, once a process.
"""

import os
from collections.abc import Callable
from typing import Any

import torch

from ...data.dataset import PART_BYTES
from ...data.pairs import PREFETCH, Pairs
from ...losses.base import PairwiseTerm
from ...losses.distributed.exchange import Ring
from ...losses.objective import Objective
from ...train.phases import Phases
from ..config.packaged import packaged_files
from ..config.run_files import load
from .env import under_torchrun

GPUS = ("gpu", "cuda")
# Pairs of a process below which a ring of so many processes launches more than it computes: 15,330
# kernels and 1,534 sends a step more for 64 pairs of each of 512 (counted, docs/benchmarks.md).
RING_ROWS, RING_RANKS = 2048, 8


def world_size(trainer: Any, place: Callable[[str], str] = lambda key: "") -> int:
    """Returns the number of processes of a run, as far as they can be used.

    Args:
        trainer: the parsed slot.
        place: returns where a key was written, for the message.

    Raises:
        ValueError: there is no such device here, or not so many.
    """
    if not isinstance(trainer.accelerator, str):
        return 1
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    accelerator = trainer.accelerator.lower()
    where = _where("trainer.accelerator", place)
    if accelerator in GPUS and not num_gpus:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise ValueError(
            f"{where}: it is {trainer.accelerator}, and torch {torch.__version__} (built {built}) "
            "finds no GPU here: use --trainer cpu, or mend the driver (nvidia-smi) or the "
            "installation of torch"
        )
    if accelerator not in (*GPUS, "cpu", "auto"):
        raise ValueError(
            f"{where}: it is {trainer.accelerator}; runs train on gpu (CUDA) or cpu; auto takes "
            "what there is"
        )
    if joined := under_torchrun():
        return joined[0] * joined[1]
    on_gpus = accelerator != "cpu" and num_gpus > 0
    count = _count(trainer.devices, num_gpus if on_gpus else None, _where("trainer.devices", place))
    return count * trainer.num_nodes


def check_rings(objective: Objective, phases: Phases, world_size: int) -> str | None:
    """Returns a line if a term's ring passes on blocks that are too small; None: none does."""
    rows = min(phase.batch_size for phase in phases.named.values()) // world_size
    if rows >= RING_ROWS or world_size < RING_RANKS:
        return None
    for name, term in objective.named_terms.items():
        if isinstance(term, PairwiseTerm) and isinstance(term.exchange, Ring):
            return (
                f"objective.terms.{name} passes blocks of {rows:,} pairs round {world_size:,} "
                "processes, which takes longer to start than to compute: take AllGather, the "
                f"default exchange, or {RING_ROWS:,} pairs a process"
            )
    return None


def check_shared_memory(
    data: Pairs, local_ranks: int, ranks: int, folder: str = "/dev/shm"
) -> str | None:
    """Returns a sentence if loader workers may need more shared memory than there is; else None.

    A worker that finds none left is killed by SIGBUS, of which nothing is said.
    """
    assert data.steps is not None
    rows = max(size for _, size in data.steps.phases) // ranks
    part = min(PART_BYTES, rows * data.recipe().bytes_per_sample)
    needed = data.workers() * PREFETCH * part * local_ranks
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    there = status.f_bavail * status.f_frsize
    if needed <= there:
        return None
    return (
        f"the loader workers of this machine may hold {needed / 2**30:.1f} GiB of batches in "
        f"{folder}, which has {there / 2**30:.1f}: give the container more (docker --ipc host or "
        "--shm-size, in Kubernetes an emptyDir with medium Memory), or lower data.num_workers"
    )


def known_peak(precision: str) -> tuple[float, str] | None:
    """Returns the TFLOP/s of this machine's GPU at a precision, and where they stand.

    None: there is no GPU, or none of those in configs/device. An H100 for PCIe, say, has a name and
    a peak of its own.
    """
    kind = next((k for k in ("bf16", "16", "32") if precision.startswith(k)), None)
    if kind is None or not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    for device, path in packaged_files("device").items():
        values = load(path, "kind: cuda")
        if name in values["names"]:
            # Tensor cores are as fast in fp16 as in bf16.
            peak = values["tflops"]["fp32" if kind == "32" else "bf16"]
            return float(peak), f"configs/device/{device}.yaml, for {name}"
    return None


def _count(devices: Any, num_gpus: int | None, where: str) -> int:
    if devices in ("auto", -1, "-1"):
        return num_gpus or 1
    text = str(devices).strip("[]").replace(" ", "")
    numbers = [int(part) for part in text.split(",") if part.isdigit()]
    is_list = isinstance(devices, list) or "," in str(devices)
    if not numbers or len(numbers) < len([part for part in text.split(",") if part]):
        raise ValueError(
            f"{where}: it is '{devices}'; it takes a number of devices, a list of GPUs such as "
            "[0, 1], or auto"
        )
    if num_gpus is None:
        if is_list or numbers[0] < 1:
            raise ValueError(
                f"{where}: it is {devices}; on the CPU it takes a number of processes, 1 or more"
            )
        return numbers[0]
    wanted = numbers if is_list else list(range(numbers[0]))
    if not wanted or max(wanted) >= num_gpus:
        raise ValueError(
            f"{where}: it is {devices}, and this machine has {num_gpus} GPU"
            f"{'s' if num_gpus > 1 else ''}: use a number up to {num_gpus}, or auto"
        )
    return len(wanted)


def _where(key: str, place: Callable[[str], str]) -> str:
    found = place(key)
    return f"{key} ({found})" if found else key
