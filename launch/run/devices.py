"""Whether the machine has what `trainer.accelerator` and `trainer.devices` ask for.

In: the trainer's slot, before anything is built. Out: how many processes train. Lightning would
find the same later, in a stack trace, once a process.
"""

from collections.abc import Callable
from typing import Any

import torch

from .env import under_torchrun

GPUS = ("gpu", "cuda")


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
