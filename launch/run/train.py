"""A run, from a parsed configuration to its summary.

In: a run file, parsed, and whether to resume. Out: the run folder and an exit status.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, Trainer

from ...data.order.steps import check_divides
from ...train.callbacks.early_stopping import ActOnMetrics
from ...train.callbacks.hang_watchdog import EXIT_STATUS
from ...train.callbacks.out_of_memory import OutOfMemory
from ...train.callbacks.stop import StopOnSignal
from ...train.checkpointing import checkpoint as checkpoints
from ...train.checkpointing.checkpoint import Checkpoints
from ...train.checkpointing.rewind import RewindingCheckpoints
from ...train.lightning_internals import begin_at
from ...train.module import ContrastiveModule, RunInfo
from ...train.phases import Phases
from ...train.screen import log_line
from ..config import parser as run_config
from ..config.fit_arguments import AUTO
from ..config.run_files import Written
from ..config.staged import identity_of, parse_stages, stages_of
from .build import build_module, build_parts
from .devices import check_rings, check_shared_memory, world_size
from .env import (
    choose_attention,
    is_first_process,
    log,
    share_cores,
    starts_again_by_itself,
    under_torchrun,
)
from .facts import facts
from .faults.lock import PATIENCE, RunLock
from .faults.lost_ranks import lost_ranks
from .faults.mirror import Mirror, open_mirror
from .folder import folder_errors, freeze, is_finished, prepare_folder, run_dir_of, write_summary
from .loggers import Loggers
from .precision import settle_precision
from .resume import agreed_checkpoint, check_checkpoint, check_stage, read_checkpoint, stage_at
from .run_log import keep_screen
from .start.carry_over import carry_model, carry_rest
from .start.initial import load_initial_weights
from .start.teachers import load_teachers
from .trainer import make_trainer, saves, trainer_arguments


@dataclass(frozen=True)
class Start:
    """A run that is ready to train.

    Attributes:
        module: with the weights of a new run; those of a checkpoint are loaded later.
        parts: the slots of the run.
        arguments: of the Trainer.
        loggers: not started.
        newest: the checkpoint that it goes on from, of this stage or the one before; None: a new
            run.
    """

    module: ContrastiveModule
    parts: Any
    arguments: dict[str, Any]
    loggers: Loggers
    newest: Path | None

    @property
    def step(self) -> int:
        """The last step that is done."""
        return 0 if self.newest is None else checkpoints.step_of(self.newest)

    @property
    def checkpoint(self) -> Path | None:
        """What the fit resumes from; None: its stage begins."""
        return None if self.step == self.parts.phases.first_step else self.newest


@dataclass(frozen=True)
class Fit:
    """The Trainer of a run, and what says afterwards how it ended.

    Attributes:
        trainer: with all callbacks and loggers.
        stop: the callback that agrees to stop at a signal.
        saving: the callback that saves, and may go back to a checkpoint.
        phases: of the run.
    """

    trainer: Trainer
    stop: StopOnSignal
    saving: Checkpoints
    phases: Phases

    def outcome(self) -> "Outcome":
        """Returns how the fit ended."""
        stop, saving = self.stop, self.saving
        if isinstance(saving, RewindingCheckpoints) and saving.rewound_to is not None:
            is_rewound = stop.signum is None
            return Outcome(saving.rewound_to, self.phases, is_rewound, stop.signum)
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        acted = next(c for c in callbacks if isinstance(c, ActOnMetrics))
        # A signal that comes with the step at which the run ends anyway changes nothing.
        signum = stop.signum if acted.stopped_by is None else None
        step = self.trainer.global_step
        return Outcome(step, self.phases, signum=signum, stopped_by=acted.stopped_by)


@dataclass(frozen=True)
class Outcome:
    """How a fit ended.

    Attributes:
        step: the last one that is done.
        phases: of the stage.
        is_rewound: the run has gone back to a checkpoint and is to be resumed.
        signum: the signal that stopped it, if one has.
        stopped_by: the callback that stopped it, if one has.
        lost: the processes that have ended without this one, if any have.
    """

    step: int
    phases: Phases
    is_rewound: bool = False
    signum: int | None = None
    stopped_by: str | None = None
    lost: str | None = None

    @property
    def is_whole(self) -> bool:
        """Whether all steps of the phases are done, and nothing ends the run."""
        ended = (self.signum, self.stopped_by, self.lost) != (None, None, None)
        return self.step == self.phases.total_steps and not ended


class Run:
    """A configuration, or one for each stage, and the folder in which it trains.

    Args:
        parser: of run files.
        config: parsed; of several stages, by their names.
        resume: run folder to continue; `auto`: the run's own, if it holds a checkpoint.
        callbacks: of the Trainer, beside those of the configuration.
        mirror: what copies the folder to a store, in the first process of a run that has one.
    """

    def __init__(
        self,
        parser: ArgumentParser,
        config: Namespace | Mapping[str, Namespace],
        resume: str | Path | None = None,
        callbacks: Sequence[Callback] = (),
        mirror: Mirror | None = None,
    ):
        self.parser, self.resume, self.mirror = parser, resume, mirror
        self.callbacks = callbacks
        configs = {"": config} if isinstance(config, Namespace) else config
        self.stages = stages_of(parser, configs)
        self.stage = self.stages[0]
        self.run_dir = run_dir_of(self.stage.config)
        # Then a run that is finished is no mistake: its last start was killed on its way out.
        self._may_be_finished = resume == AUTO or starts_again_by_itself()
        self._lock: RunLock | None = None
        self._began, self._cpu_began = time.time(), time.process_time()

    @classmethod
    def of(
        cls, written: Written, resume: str | None = None, callbacks: Sequence[Callback] = ()
    ) -> "Run":
        """Parses what was written, and settles what follows from the machine.

        Raises:
            ValueError: the configuration is wrong, or does not fit the machine.
        """
        parser = run_config.make_parser()
        configs = parse_stages(parser, written)
        for stage, config in configs.items():
            num_processes = world_size(config.trainer, written.place)
            of = f"stages.{stage}." if stage else ""
            for name, phase in config.phases.items():
                check_divides(phase.batch_size, num_processes, f"{of}phases.{name}.")
            for name, stream in (config.data.streams or {}).items():  # 0: that of the phase
                size = stream.init_args.batch_size or 0
                check_divides(size, num_processes, f"{of}data.streams.{name}.")
        first = next(iter(configs.values()))
        run_dir = Path(resume) if resume not in (None, AUTO) else run_dir_of(first)
        mirror = open_mirror(first.mirror, run_dir, resume is not None) if first.mirror else None
        fit_machine(list(configs.values()), resume)
        return cls(parser, configs, resume, callbacks, mirror)

    def train(self) -> int:
        """Trains to the end of the last stage; returns the exit status.

        A run may also go back to a checkpoint, and on from there, by itself.
        """
        with folder_errors(self.run_dir), contextlib.closing(self):
            while (start := self.restore()) is not None:
                outcome = self.fit(start)
                del start  # the model that is built next needs its memory
                if not (outcome.is_rewound or (outcome.is_whole and not self.is_last_stage)):
                    return self.finish(outcome)
                self.resume = self.run_dir
        return 0

    @property
    def is_last_stage(self) -> bool:
        """Whether no other stage follows."""
        return self.stage is self.stages[-1]

    def close(self) -> None:
        """Lets another process train in the run folder, once its mirror has all of it.

        At once: what refers to an error would keep this object, and with it the lock, alive.

        Raises:
            ValueError: something could not be copied to the mirror.
        """
        mirror, self.mirror = self.mirror, None
        try:
            if mirror is not None:
                mirror.close()
        finally:
            if self._lock is not None:
                self._lock.release()
            self._lock = None

    def restore(self) -> Start | None:
        """Builds everything, and finds the checkpoint of a resumed run; None: it is finished."""
        run_dir = self.run_dir
        if self.resume == AUTO:
            self.resume = run_dir if checkpoints.newest(run_dir) else None
        newest, saved = None, None
        if self.resume is not None:
            self._take_lock()
            newest = agreed_checkpoint(Path(self.resume))
            number = stage_at(self.stages, checkpoints.step_of(newest))
            self.stage = stage = self.stages[number]
            if checkpoints.step_of(newest) == stage.first_step:
                saved = read_checkpoint(newest)
                check_stage(saved, newest, self.stages[number - 1])
        stage = self.stage
        config, wanted = stage.config, stage.resolved["trainer"].get("logger")
        loggers = Loggers(wanted, config.name, run_dir, self.resume is not None)
        parts = build_parts(self.parser, config, self.stage.earlier)
        arguments = trainer_arguments(parts.trainer)
        if self.callbacks:
            arguments["callbacks"] = [*(arguments.get("callbacks") or []), *self.callbacks]
        parts.data.check(int(arguments.get("num_nodes", 1)))
        parts.objective.check_reads_weight(parts.data.weighted)
        if parts.data.caveat:
            log(parts.data.caveat)
        if self.resume is None:
            data = parts.data
            load_initial_weights(parts.model, config, data.tokenizer, data.eval_transform)
        if saved is not None and newest is not None:
            carry_model(saved, newest, parts)
        data = parts.data
        info = RunInfo(stage.resolved, data.fingerprint, data.source_names, stage=stage.name)
        module = build_module(parts, load_teachers(parts), info)
        if newest is None:
            prepare_folder(run_dir)
            self._take_lock()
        elif saved is not None:
            carry_rest(saved, newest, module, data)
        else:
            check_checkpoint(newest, self.stage, module)
        start = Start(module, parts, arguments, loggers, newest)
        total_steps = parts.phases.total_steps
        if start.step < total_steps or not is_finished(run_dir, total_steps):
            return start
        if not self._may_be_finished:
            raise ValueError(
                f"{run_dir} is finished ({total_steps} steps); raise phases.NAME.samples to go on"
            )
        log(f"{run_dir} is finished ({total_steps} steps)")
        return None

    def _take_lock(self) -> None:
        if is_first_process() and self._lock is None:
            self._lock = RunLock(self.run_dir, PATIENCE if self._may_be_finished else 0.0)

    def fit(self, start: Start) -> Outcome:
        """Trains until the end of the run, a signal, or a rewind."""
        fit = self.prepare(start)
        if start.step < fit.phases.total_steps:
            path = start.checkpoint
            try:
                fit.trainer.fit(
                    start.module, datamodule=start.parts.data, ckpt_path=path, weights_only=True
                )
            except Exception as error:
                callbacks: list[Any] = fit.trainer.callbacks  # type: ignore[attr-defined]
                memory = next(c for c in callbacks if isinstance(c, OutOfMemory))
                if memory.sentence is not None:
                    raise ValueError(memory.sentence) from error
                lost = lost_ranks(error, fit.trainer)
                if lost is None or os.environ.get("COUNTERPOINT_TRACEBACK") == "1":
                    raise
                return Outcome(fit.trainer.global_step, fit.phases, lost=lost)
            return fit.outcome()
        return Outcome(start.step, fit.phases)

    def prepare(self, start: Start) -> Fit:
        """Makes the Trainer, and writes down in the run folder what begins."""
        parts, step, run_dir = start.parts, start.step, self.run_dir
        phases: Phases = parts.phases
        keep_screen(run_dir, step)
        ends = [stage.last_step for stage in self.stages[:-1]]
        stop, saving = StopOnSignal(), saves(parts, run_dir, ends)
        stage, resolved = self.stage, {each.name: each.resolved for each in self.stages}
        loggers = start.loggers.start(stage.resolved, step)
        arguments = start.arguments
        goes_on = None if start.newest is None else step
        trainer = make_trainer(arguments, parts, stop, saving, run_dir, goes_on, loggers)
        if start.checkpoint is None:
            begin_at(trainer, step)
        if hint := check_shared_memory(parts.data, trainer.num_devices, trainer.world_size):
            log(hint)
        if hint := check_rings(parts.objective, phases, trainer.world_size):
            log(hint)
        known = facts(start.module.model, parts.data, trainer, stage.chosen)
        if is_first_process():
            freeze(run_dir, resolved, stage.name, step, known)
        number = f"{self.stages.index(stage) + 1} of {len(self.stages)}"
        name = stage.config.name + (f", stage {stage.name} ({number})" if stage.name else "")
        log(
            f"{name}: {phases.own_steps} steps "
            f"({passes(phases, known['epoch_size'])}), "
            f"{known['parameters']['total'] / 1e6:.1f} M parameters, {known['precision']}, "
            f"results in {run_dir}"
        )
        return Fit(trainer, stop, saving, phases)

    def finish(self, outcome: Outcome) -> int:
        """Writes the summary of a run that has ended; returns the exit status."""
        step, stopped_by = outcome.step, None
        if outcome.lost is not None:
            log_line(
                f"{outcome.lost}; stopped in step {step + 1}; continue with: "
                f"counterpoint fit --resume {self.run_dir}",
                sys.stderr,
            )
            return EXIT_STATUS
        if step < outcome.phases.total_steps:
            stopped_by = outcome.stopped_by or "a callback"
            signum = outcome.signum
            why = stopped_by if signum is None else signal.Signals(signum).name
            log(
                f"stopped by {why} after step {step}; "
                f"continue with: counterpoint fit --resume {self.run_dir}"
            )
            if signum is not None:
                return 128 + signum
        if is_first_process():
            spent = {
                "seconds_last_process": time.time() - self._began,
                "cpu_seconds_last_process": time.process_time() - self._cpu_began,
            }
            identity = identity_of(self.stages)
            resolved = self.stage.resolved
            write_summary(self.run_dir, resolved, identity, outcome.phases, step, spent, stopped_by)
        return 0


def passes(phases: Phases, epoch_size: int | None) -> str:
    """How much a run or a stage sees: pairs, and epochs where the data have a size."""
    samples = sum(steps * size for steps, size in phases.lengths[len(phases.earlier) :])
    if epoch_size is None:
        return f"{samples:,} pairs"
    return f"{samples / epoch_size:.1f} epochs of {epoch_size:,} pairs"


def fit_machine(stages: Sequence[Any], resume: str | None) -> None:
    """Settles what follows from the machine: the precision for `auto`, threads, kernels.

    Args:
        stages: their configurations, which share the trainer's slot.
        resume: what is resumed.
    """
    config = stages[0]
    run_dir = Path(resume) if resume not in (None, AUTO) else run_dir_of(config)
    is_resumed = resume is not None and checkpoints.newest(run_dir) is not None
    settle_precision(config.trainer, run_dir if is_resumed else None)
    for other in stages[1:]:
        other.trainer.precision = config.trainer.precision
    choose_attention(config.trainer.precision)
    devices = str(config.trainer.devices)
    if under_torchrun() is None and config.trainer.accelerator == "cpu" and devices.isdigit():
        share_cores(int(devices))
