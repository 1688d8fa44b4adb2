"""Windows of steps that are recorded: by torch's profiler, and every block of GPU memory.

In: which steps, on which ranks. Out: `RUN/trace/steps-10-13-rank-0.json.gz`, a Chrome trace for
https://ui.perfetto.dev, and `RUN/trace/memory-1-2-rank-0.pickle` for
https://pytorch.org/memory_viz. Other steps cost nothing.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ..checks import at_least
from ..screen import log_line
from ..torch_internals import dump_memory_snapshot, record_memory


@dataclass
class TraceConfig:
    """Which steps are recorded. Steps have their numbers in metrics.jsonl.

    Attributes:
        steps: the first and the last one that torch's profiler records; none: none.
        memory_steps: the first and the last one in which blocks of GPU memory are recorded with
            the stacks that asked for them, also for the snapshot of a run that is out of memory.
        ranks: which record, each into files of its own.
        nonfinite: how many steps whose gradient is not finite are kept, each in a file that
            `counterpoint replay` computes again. On GPUs each step then waits for its end.
    """

    steps: tuple[int, int] | None = None
    memory_steps: tuple[int, int] | None = None
    ranks: tuple[int, ...] = (0,)
    nonfinite: int = 0

    def __post_init__(self) -> None:
        at_least("trace.nonfinite", self.nonfinite, 0)
        for name in ("steps", "memory_steps"):
            window = getattr(self, name)
            if window is not None and not 1 <= window[0] <= window[1]:
                raise ValueError(
                    f"trace.{name} is {list(window)}: give the first and the last step, such as "
                    "[10, 13]"
                )


class Trace(pl.Callback):
    """Records the windows, each once, as far as the run goes through them."""

    def __init__(self, config: TraceConfig, folder: Path):
        self.config, self.folder = config, folder
        # Windows of this rank that are still to come or going on.
        self._steps = self._memory = (0, 0)
        self._rank = 0
        self._profiler: profile | None = None
        self._mark = ExitStack()
        self._remembers = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Checks what can be recorded here."""
        self._rank, ranks = trainer.global_rank, self.config.ranks
        if self.config.memory_steps and pl_module.device.type != "cuda":
            raise ValueError(
                "trace.memory_steps records the memory of GPUs, and this run trains on the CPU: "
                "leave it out"
            )
        if unknown := [rank for rank in ranks if not 0 <= rank < trainer.world_size]:
            raise ValueError(
                f"trace.ranks names {unknown}, and the run has ranks 0 to {trainer.world_size - 1}"
            )
        if self._rank in ranks:
            self._steps = self.config.steps or (0, 0)
            self._memory = self.config.memory_steps or (0, 0)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Begins a window, and marks the step in the trace."""
        step = trainer.global_step + 1
        first, last = self._steps
        if self._profiler is None and first - 1 <= step <= last:
            # What the profiler itself prepares is in a step before the first.
            warmup = max(first - step, 0)
            self._profiler = make_profiler(pl_module.device, warmup, last - step - warmup + 1)
            self._profiler.start()
        if self._profiler is not None:
            self._mark.enter_context(record_function(f"step {step}"))
        if not self._remembers and self._memory[0] <= step <= self._memory[1]:
            record_memory(True)
            self._remembers = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Ends a window after its last step."""
        self._mark.close()
        step = trainer.global_step
        if self._profiler is not None and step < self._steps[1]:
            self._profiler.step()
        if step == self._steps[1]:
            self._write_trace()
        if step == self._memory[1]:
            self._write_memory()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes what a run that ends inside of a window has recorded."""
        self._mark.close()
        self._write_trace()
        self._write_memory()

    def _write_trace(self) -> None:
        """Ends the profiler, if it runs."""
        if self._profiler is None:
            return
        self._profiler.stop()
        path = self._path("steps", self._steps, "json.gz")
        self._profiler.export_chrome_trace(str(path))
        self._profiler, self._steps = None, (0, 0)
        log_line(f"{path}: a trace, for https://ui.perfetto.dev")

    def _write_memory(self) -> None:
        """Ends the recorder of memory, if it runs."""
        if not self._remembers:
            return
        path = self._path("memory", self._memory, "pickle")
        dump_memory_snapshot(path)
        record_memory(False)
        self._remembers, self._memory = False, (0, 0)
        log_line(f"{path}: blocks of memory, for https://pytorch.org/memory_viz")

    def _path(self, kind: str, window: tuple[int, int], suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{kind}-{window[0]}-{window[1]}-rank-{self._rank}.{suffix}"


def make_profiler(device: torch.device, warmup: int, active: int) -> profile:
    """Returns a profiler of so many steps, before which it may warm up."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = None
    if warmup:
        plan = schedule(wait=0, warmup=warmup, active=active, repeat=1)
    return profile(activities=activities, schedule=plan, record_shapes=True)
