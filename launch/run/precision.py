"""`trainer.precision: auto`: bf16 where the device multiplies it fast, else fp32.

In: the trainer's slot of a parsed configuration, and this machine. Out: a precision of Lightning's
in the place of `auto`, the same in all processes of the run, and a printed line with the reason.

The processor's flags are not enough: libraries can be configured not to use its instructions, and
virtual machines may emulate them. So a small product is timed, too: bf16 in hardware takes a
quarter of fp32's time, emulated 40 to 130 times as long.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from ...train.callbacks.flops import one_thread, product_seconds, random_matrices
from ..config.parser import AUTO
from .env import is_first_process, log, under_torchrun
from .rendezvous import agreed

MIXED, FULL = "bf16-mixed", "32-true"
# torch's functions for what makes a processor fast at bf16. They are private, and may go.
INSTRUCTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
CAPABILITY = (8, 0)  # of the first NVIDIA GPUs with bf16
SIZE, ROUNDS, SECONDS = 256, 20, 0.05


class Bf16(NamedTuple):
    """Whether this machine is fast at bf16, and how that is known."""

    is_fast: bool
    reason: str


def settle_precision(trainer: Any, resumed: Path | None) -> None:
    """Replaces `auto`, prints the precision and why, and warns of bf16 that is emulated.

    Args:
        trainer: the slot of a parsed configuration; its `precision` is changed.
        resumed: folder of the run that is continued; None: a new run.

    Raises:
        ValueError: Lightning starts processes on several nodes, which cannot agree in time.
    """
    if trainer.precision != AUTO:
        if is_first_process() and (slow := slow_bf16(trainer.precision, trainer.accelerator)):
            is_kept = resumed is not None and precision_of(resumed) == trainer.precision
            kept = ", as the run began," if is_kept else ""
            log(f"precision: {trainer.precision}{kept} is slow here, slower than {FULL}: {slow}")
        return
    if trainer.num_nodes > 1 and under_torchrun() is None:
        raise ValueError(
            f"trainer.num_nodes={trainer.num_nodes} without torchrun or srun: each node would "
            "choose a precision of its own; name one (trainer.precision: bf16-mixed)"
        )
    trainer.precision = agreed("PRECISION", lambda: choose(trainer.accelerator, resumed))


def choose(accelerator: Any, resumed: Path | None) -> str:
    """Returns and prints the precision for `auto`: that of the resumed run, or what is fast."""
    if resumed is None:
        bf16 = fast_bf16(accelerator)
        log(f"precision: {MIXED if bf16.is_fast else FULL} (auto: {bf16.reason})")
        return MIXED if bf16.is_fast else FULL
    kept = precision_of(resumed)
    slow = slow_bf16(kept, accelerator)
    log(f"precision: {kept}, as the run began" + (f", is slow here: {slow}" if slow else ""))
    return kept


def precision_of(run_dir: Path) -> str:
    """Returns what a run computes in, by its folder; null is Lightning's default."""
    config = yaml.safe_load((run_dir / "config.yaml").read_bytes())
    return str(config["trainer"].get("precision") or FULL)


def slow_bf16(precision: str | int | None, accelerator: Any) -> str | None:
    """Returns why a precision is slow on this machine; None: it is not, or it is no bf16."""
    if not str(precision).startswith("bf16"):
        return None
    bf16 = fast_bf16(accelerator)
    return None if bf16.is_fast else bf16.reason


def fast_bf16(accelerator: Any) -> Bf16:
    """Looks at the devices that Lightning would take under this name."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return bf16_on_gpus()
    if accelerator in ("auto", "cpu"):
        return bf16_on_cpu()
    return Bf16(False, f"nothing is known about bf16 with accelerator {accelerator}")


def bf16_on_gpus() -> Bf16:
    """All GPUs that this process sees have to be fast; fp16 is left to those who ask for it.

    It overflows where bf16 does not, needs a gradient scaler, and goes with neither ZeRO nor every
    optimiser.
    """
    indices = range(torch.cuda.device_count())
    oldest = min(indices, key=torch.cuda.get_device_capability)
    name = torch.cuda.get_device_name(oldest)
    major, minor = capability = torch.cuda.get_device_capability(oldest)
    if capability >= CAPABILITY:
        return Bf16(True, f"{name} has it in hardware")
    return Bf16(
        False,
        f"{name}, compute capability {major}.{minor}, has no bf16; 16-mixed is faster there, with "
        "the limits of fp16",
    )


def bf16_on_cpu() -> Bf16:
    """Asks torch for the instructions, then times products of 256 x 256 of both kinds in turns."""
    known = [getattr(torch.cpu, name)() for name in INSTRUCTIONS if hasattr(torch.cpu, name)]
    if known and not any(known):
        return Bf16(False, "the processor has neither AMX nor AVX512-BF16")
    bf16, fp32 = compared(torch.bfloat16, torch.float32)
    times = (
        f"a product of {SIZE} x {SIZE} takes {1e3 * bf16:.2g} ms in bf16, {1e3 * fp32:.2g} in fp32"
    )
    return Bf16(bf16 < fp32, times)


def compared(*dtypes: torch.dtype) -> list[float]:
    """Returns the shortest time of a product in each type, in seconds.

    They take turns, so that other work on the machine disturbs all alike, on one thread, which
    waits for no other. After two of each kind there are only as many as fit into `SECONDS`.
    """
    with one_thread():
        pairs = [random_matrices(SIZE, dtype) for dtype in dtypes]
        for a, b in pairs:
            product_seconds(a, b)  # the first one makes the kernel
        best, spent = [math.inf for _ in pairs], 0.0
        for _ in range(ROUNDS):
            times = [product_seconds(a, b) for a, b in pairs]
            best = [min(old, new) for old, new in zip(best, times, strict=True)]
            spent += sum(times)
            if spent > SECONDS:
                break
    return best
