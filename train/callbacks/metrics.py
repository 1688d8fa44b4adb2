"""Training metrics: `RUN/metrics.jsonl`, other loggers, one line on the screen.

In: the module's report, already on the device. Out: at log steps only, values averaged over ranks;
no step in between waits for the device.
"""

import json
import math
import resource
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from ...data.files import write_whole
from ..distributed import ControlGroup, numbers_of_ranks
from ..module import ContrastiveModule, Reporter
from ..screen import log_beside_bar, log_line
from .flops import FlopMeter, measure_peak
from .skew import FORWARD, WAIT, ForwardClock, Stragglers
from .spread import Spread

SHOWN = ("loss", "lr", "pairs_per_s")  # on Lightning's progress bar


class MetricsFile(Logger):
    """Appends one JSON object a line, `{"step": ..., "wall": seconds, ...}`.

    Values logged through Lightning (a callback's `self.log`, LearningRateMonitor), which counts
    steps from 0 and adds rows of its own, go into the run's next row.

    Args:
        path: of the file.
        resume_step: rows after this step are cut off; None: a new file.

    Attributes:
        steps: the step of each name's last value, the same on every rank.
    """

    def __init__(self, path: Path, resume_step: int | None):
        super().__init__()
        self.path = path
        self._before = 0.0
        self._start = time.monotonic()
        self._waiting: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        if rank_zero_only.rank == 0:
            rows = [] if resume_step is None else read_rows(path)
            kept = [row for row in rows if row["step"] <= (resume_step or 0)]
            self._before = max((row["wall"] for row in kept), default=0.0)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        """Empty: the run folder is the version."""
        return ""

    @property
    def wall(self) -> float:
        """Seconds of training, those before a resume included."""
        return self._before + time.monotonic() - self._start

    def log_row(self, values: dict[str, float], step: int) -> None:
        """Appends one row, with the values logged through Lightning since the last."""
        row = {**self._waiting, **values}
        self._waiting = {}
        self.steps |= dict.fromkeys(row, step)
        self._append({"step": step, "wall": round(self.wall, 3), **row})

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Holds values for the next row, without Lightning's epoch, which is always 0 here."""
        self._waiting |= {name: value for name, value in metrics.items() if name != "epoch"}

    def finalize(self, status: str) -> None:
        """Writes values that were logged after the last row."""
        if self._waiting:
            self.log_row({}, max(self.steps.values(), default=0))

    @rank_zero_only
    def _append(self, row: dict[str, Any]) -> None:
        """Writes a row and closes the file, so that a kill loses no earlier row."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in `RUN/config.yaml`."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a metrics file, without a last line that a kill has cut."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def log_row(trainer: pl.Trainer, values: dict[str, float], step: int) -> None:
    """Sends one row to every logger, and to callbacks that read `trainer.callback_metrics`."""
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.log_row(values, step)
        else:
            logger.log_metrics(values, step)
    tensors = {name: torch.tensor(float(value)) for name, value in values.items()}
    trainer.callback_metrics.update(tensors)
    trainer.logged_metrics.update(tensors)
    trainer.progress_bar_metrics.update({name: values[name] for name in SHOWN if name in values})


class Metrics(Reporter):
    """Collects, averages and logs the training metrics every `trainer.log_every_n_steps`.

    Args:
        peak_tflops: of one device, in the run's precision; None: see `known_peak`.
        epoch_size: samples of one pass over the data; None: epochs are not counted.
        known_peak: of this device, and where that stands; None: what a matrix product reaches.

    Attributes:
        latest: the last row.
    """

    def __init__(
        self,
        peak_tflops: float | None = None,
        epoch_size: int | None = None,
        known_peak: tuple[float, str] | None = None,
    ):
        self._wait = self._busy = 0.0
        self._last_step = 0
        self._peak_tflops = peak_tflops
        self._known_peak = known_peak
        self._epoch_size = epoch_size
        self.latest: dict[str, float] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Hooks the FLOP meter to the towers before a strategy wraps them."""
        assert isinstance(pl_module, ContrastiveModule)
        frozen = [towers.model for towers in pl_module.frozen_towers.values()]
        self._meter = FlopMeter([pl_module.model, *frozen])
        self._forward = ForwardClock(pl_module.objective)
        self._spread = Spread(pl_module.objective)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts counting samples, and measures the device's peak unless it is given."""
        self._last_step = trainer.global_step
        hosts = ControlGroup().gather(socket.gethostname())
        self._stragglers = Stragglers([f"rank {rank} ({host})" for rank, host in enumerate(hosts)])
        if self._peak_tflops is not None:
            self._peak = self._peak_tflops * 1e12
            return
        if self._known_peak is None:
            self._peak = measure_peak(pl_module.device, trainer.precision)
            source = "measured: what a product of random matrices reaches"
        else:
            self._peak, source = 1e12 * self._known_peak[0], self._known_peak[1]
        if trainer.is_global_zero:
            log_line(f"mfu is a share of {self._peak / 1e12:.4g} TFLOP/s a device ({source})")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Adds the time since the last step's end to the data wait."""
        assert isinstance(pl_module, ContrastiveModule)
        self._wait += time.monotonic() - pl_module.step_ended
        self._meter.listening = True
        self._spread.listening = is_logged(trainer, trainer.global_step + 1)
        self._forward.start(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Reduces and logs at log steps; evaluation and checkpoints are in no time."""
        assert isinstance(pl_module, ContrastiveModule)
        self._meter.listening = False
        step = trainer.global_step
        logs = is_logged(trainer, step)
        if logs and pl_module.device.type == "cuda":
            # The host is ahead of the device, whose time for these steps is measured.
            torch.cuda.synchronize(pl_module.device)
        self._busy += time.monotonic() - pl_module.step_ended
        if logs:
            values = self._training_values(pl_module, step)
            values |= trainer.datamodule.error_counts()  # type: ignore[attr-defined]
            log_row(trainer, values, step)
            self.latest = values
            if trainer.is_global_zero:
                log_beside_bar(trainer, screen_line(step, int(trainer.max_steps), values))
            self._wait, self._busy, self._last_step = 0.0, 0.0, step

    def _training_values(self, module: ContrastiveModule, step: int) -> dict[str, float]:
        samples = module.phases.samples_before
        seconds = max(self._busy, 1e-9)
        num_steps = max(step - self._last_step, 1)
        model_flops, hardware_flops = self._meter.take()
        own = {name: value.detach() for name, value in module.report.items()} | {
            "data_wait": self._wait / seconds,
            "flops": model_flops,
            "hardware_flops": hardware_flops,
            "forward_seconds": self._forward.take() / num_steps,
            **memory(module.device),
        }
        by_source = module.source_loss
        rest = [] if by_source is None else list(by_source.flatten())
        table = numbers_of_ranks([*own.values(), *rest], module.device)
        means = table.mean(0).tolist()
        values = dict(zip(own, means[: len(own)], strict=True))
        ranks = dict(zip(own, table.T, strict=False))  # [ranks] each
        values |= {name: round(float(ranks[name].max()), 3) for name in memory(module.device)}
        values |= self._skew(ranks, module.global_rank == 0, seconds / num_steps)
        pairs = samples(step) - samples(self._last_step)
        values |= self._compute(values, pairs / module.trainer.world_size, seconds)
        # No limit yet is an infinite one, for which JSON has no number.
        values = {
            k: v for k, v in values.items() if not (k.startswith("grad_clip/") and v == math.inf)
        }
        module.guard.check()
        for name in module.objective.weights:
            values[f"weight/{name}"] = module.objective.weight(name)
        if by_source is not None:
            totals = iter(means[len(own) :])
            for source, total, count in zip(module.run.sources, totals, totals, strict=True):
                if count:
                    values[f"loss_by_source/{source}"] = total / count
        if self._epoch_size:
            values["epoch"] = round(samples(step) / self._epoch_size, 4)
        phase, _, _ = module.phases.at(step - 1)
        values |= {name: int(total) for name, total in module.guard.report().items()}
        values |= self._spread.take()
        if (warning := module.update_rms()) is not None:
            values["update_rms"] = float(warning)
        return values | {
            "logit_scale": float(module.tensors.value(module.model.logit_scale).exp()),
            "lr": module.phases.learning_rate(step - 1),
            "grad_norm": float(module.grad_norm) if module.grad_norm is not None else 0.0,
            "samples": samples(step),
            "pairs_per_s": pairs / seconds,
            "phase": len(module.phases.earlier) + list(module.phases.named).index(phase),
        }

    def _skew(self, ranks: Mapping[str, Tensor], speaks: bool, step: float) -> dict[str, float]:
        """Returns the longest times and whose they are; logs ranks that have become slow.

        Args:
            ranks: each rank's numbers by name.
            speaks: whether this process logs.
            step: mean duration of the last steps in seconds.
        """
        waits, passes = ranks["data_wait"], ranks["forward_seconds"]
        if len(waits) == 1:
            return {}
        slow = self._stragglers.look({WAIT: waits * step, FORWARD: passes}, step)
        for sentence in slow if speaks else []:
            log_line(sentence, sys.stderr)
        return {
            "data_wait_max": float(waits.max()),
            "data_wait_max_rank": int(waits.argmax()),
            "forward_seconds_max": float(passes.max()),
            "forward_seconds_max_rank": int(passes.argmax()),
        }

    def _compute(self, values: dict[str, float], pairs: float, seconds: float) -> dict[str, float]:
        """Takes one rank's FLOPs out of the values; returns those of a pair, and the utilisation.

        They are the towers' alone. Hardware FLOPs are added where something is recomputed.
        """
        model, hardware = values.pop("flops"), values.pop("hardware_flops")
        if math.isnan(model):
            return {}
        rates = {"flops_per_pair": model / pairs, "mfu": model / seconds / self._peak}
        if hardware > model:
            rates["hardware_flops_per_pair"] = hardware / pairs
        return rates


def is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Whether the row of this step is written."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return step % every == 0 or step == trainer.max_steps


def memory(device: torch.device) -> dict[str, float]:
    """Returns this process's peak memory in GiB, since it started.

    On a GPU that is torch's tensors, and what torch holds with its cache; else resident memory,
    without that of loader processes.
    """
    if device.type == "cuda":
        return {
            "peak_memory_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "peak_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    # Linux counts in KiB.
    return {"peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def screen_line(step: int, total: int, values: dict[str, float]) -> str:
    """Formats the values that are needed to compare two runs, in one line."""
    left = (total - step) * values["samples"] / step / max(values["pairs_per_s"], 1e-9)
    skipped = sum(int(value) for name, value in values.items() if name.startswith("errors/"))
    steps = sum(int(values.get(f"guard/{name}", 0)) for name in ("nonfinite", "spikes"))
    return (
        f"step {step:>{len(str(total))}}/{total}  "
        + (f"epoch {values['epoch']:.2f}  " if "epoch" in values else "")
        + f"loss {values['loss']:.4f}  "
        f"scale {values['logit_scale']:.2f}  lr {values['lr']:.2e}  "
        f"grad {values['grad_norm']:.2f}  {values['pairs_per_s']:.0f} pairs/s  "
        f"data wait {values['data_wait']:.0%}  mem {values['peak_memory_gib']:.1f} GiB  "
        f"left {left / 60:.1f} min"
        + (f"  skipped {skipped}" if skipped else "")
        + (f"  steps left out {steps}" if steps else "")
    )
