"""What runs on the null GPU: whole fits, as `counterpoint fit` makes them.

In: the folder of the call's messages, a run file, keys that override it. Out: what was counted in
some of the steps.
"""

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from null_gpu.device import Counts, objects_over_gloo, prepare

from counterpoint.launch.api.training import build
from counterpoint.train.module import ContrastiveModule


@dataclass(frozen=True)
class Counted:
    """What some steps cost.

    Attributes:
        a_step: launches, waits, calls and bytes of collectives (what a rank's tensor of all ranks
            holds), averaged over the steps; the median of the host's milliseconds on all threads.
        peak_bytes: most memory that torch allocated in them.
        waits: places in which the host waited for the device, how often in all of the steps.
        kernels: launches by kernel, in all of the steps.
    """

    a_step: dict[str, float]
    peak_bytes: int
    waits: dict[str, int]
    kernels: dict[str, int]


class Probe(pl.Callback):
    """Counts from the beginning of step `first` to that of step `last` (0-based).

    A step's batch is sent before its beginning; so there are as many batches as steps.
    """

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.counted: Counted | None = None
        self._times: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Begins and ends."""
        if trainer.global_step == self.first:
            torch.cuda.reset_peak_memory_stats()
            self._counts = Counts()
            self._listening = self._counts.waits()
            self._waits = self._listening.__enter__()
            self._counts.reset()
        if trainer.global_step >= self.first:
            self._times.append(time.process_time())
        if trainer.global_step == self.last:
            self._listening.__exit__(None, None, None)
            self.counted = counted(self._counts, self.last - self.first, self._waits)
            self.counted.a_step["host ms"] = 1e3 * float(np.median(np.diff(self._times)))


def counted(counts: Counts, num_steps: int, waits: Counter[str]) -> Counted:
    """Returns what was counted in so many steps."""
    every = counts.all()
    kernels = {name[7:]: n for name, (n, _) in every.items() if name.startswith("kernel:")}
    a_step = {name: every.get(name, (0, 0.0))[0] / num_steps for name in ("launch", "wait")}
    for name in ("all_gather", "reduce_scatter", "all_reduce", "broadcast", "send"):
        calls, num_bytes = every.get(f"nccl:{name}", (0, 0.0))
        a_step |= {f"{name} calls": calls / num_steps, f"{name} bytes": num_bytes / num_steps}
    for name, (calls, _) in every.items():
        if name.startswith(("copy:", "cudaMalloc")):
            a_step[name] = calls / num_steps
    return Counted(a_step, torch.cuda.max_memory_allocated(), dict(waits), kernels)


def begin(world_size: int, messages: str) -> None:
    """Prepares this process, one of `world_size` that really exist."""
    prepare()
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ["NULL_GPU_MESSAGES"] = messages
        objects_over_gloo()


def no_overflow() -> None:
    """Keeps ZeRO's ranks together, which read from memory that nobody wrote whether to step."""
    from deepspeed.runtime.zero import stage3, stage_1_and_2

    for module in (stage_1_and_2, stage3):
        module.is_invalid_grad_norm = lambda norm: False  # type: ignore[assignment]
    for kind in (stage_1_and_2.DeepSpeedZeroOptimizer, stage3.DeepSpeedZeroOptimizer_Stage3):
        kind.has_overflow = lambda self, *args, **kwargs: False  # type: ignore[assignment]


def fit(
    rank: int,
    world_size: int,
    messages: str,
    config: Path,
    run_dir: Path,
    overrides: dict[str, Any],
    steps: tuple[int, int],
    planted: bool = False,
) -> Counted:
    """Trains a run to its end; returns what was counted between two steps.

    `planted`: with a step that reads its loss.
    """
    begin(world_size, messages)
    if str(overrides.get("trainer.strategy")).startswith("zero"):
        no_overflow()
    probe = Probe(*steps)
    made = build(config, overrides, run_dir=run_dir, callbacks=[probe])
    if planted:
        made.module.__class__ = Reading
    made.trainer.fit(made.module, datamodule=made.data)
    assert probe.counted is not None
    return probe.counted


class Reading(ContrastiveModule):
    """A module in whose step somebody has read a number from the device."""

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Reads the loss."""
        loss = super().training_step(batch, batch_idx)
        self.last_loss = loss.item()
        return loss
