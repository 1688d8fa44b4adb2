"""A run, from a parsed configuration to its summary.

In: a run file, parsed, and whether to resume. Out: the run folder and an exit status.
"""

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from ...train.callbacks.early_stopping import ActOnMetrics
from ...train.callbacks.stop import StopOnSignal
from ...train.checkpointing import checkpoint as checkpoints
from ...train.checkpointing.rewind import RewindingCheckpoints
from ...train.module import ContrastiveModule, RunInfo
from ...train.phases import Phases
from ..config import parser as run_config
from ..config.fit_arguments import AUTO
from .build import build_module, build_parts
from .env import is_first_process, log, starts_again_by_itself
from .facts import facts
from .folder import freeze, is_finished, prepare_folder, run_dir_of, write_summary
from .load import load_initial_weights
from .loggers import Loggers
from .resume import find_checkpoint
from .run_log import keep_screen
from .teachers import load_teachers
from .trainer import make_trainer, saves, trainer_arguments


@dataclass(frozen=True)
class Start:
    """A run that is ready to train.

    Attributes:
        module: with the weights of a new run; those of a checkpoint are loaded later.
        parts: the slots of the run.
        arguments: of the Trainer.
        loggers: not started.
        checkpoint: what to resume from; None: a new run.
    """

    module: ContrastiveModule
    parts: Any
    arguments: dict[str, Any]
    loggers: Loggers
    checkpoint: Path | None

    @property
    def step(self) -> int:
        """The last step that is done."""
        return 0 if self.checkpoint is None else checkpoints.step_of(self.checkpoint)


@dataclass(frozen=True)
class Outcome:
    """How a fit ended.

    Attributes:
        step: the last one that is done.
        phases: of the run.
        is_rewound: the run has gone back to a checkpoint and is to be resumed.
        signum: the signal that stopped it, if one has.
        stopped_by: the callback that stopped it, if one has.
    """

    step: int
    phases: Phases
    is_rewound: bool = False
    signum: int | None = None
    stopped_by: str | None = None


class Run:
    """A configuration and the folder in which it trains.

    Args:
        parser: of run files.
        config: parsed.
        resume: run folder to continue; `auto`: the run's own, if it holds a checkpoint.
    """

    def __init__(self, parser: ArgumentParser, config: Namespace, resume: str | Path | None = None):
        self.parser, self.config, self.resume = parser, config, resume
        self.resolved = run_config.plain(parser, config)
        self.chosen = run_config.without_defaults(parser, config)
        self.run_dir = run_dir_of(config)
        # Then a run that is finished is no mistake: its last start was killed on its way out.
        self._may_be_finished = resume == AUTO or starts_again_by_itself()
        self._began, self._cpu_began = time.time(), time.process_time()

    def train(self) -> int:
        """Trains to the end, as often as the run goes back by itself; returns the exit status."""
        while (start := self.restore()) is not None:
            outcome = self.fit(start)
            del start  # the model that is built next needs its memory
            if not outcome.is_rewound:
                return self.finish(outcome)
            self.resume = self.run_dir
        return 0

    def restore(self) -> Start | None:
        """Builds everything, and finds the checkpoint of a resumed run; None: it is finished."""
        config, run_dir = self.config, self.run_dir
        if self.resume == AUTO:
            self.resume = run_dir if checkpoints.newest(run_dir) else None
        wanted = self.resolved["trainer"].get("logger")
        loggers = Loggers(wanted, config.name, run_dir, self.resume is not None)
        parts = build_parts(self.parser, config)
        arguments = trainer_arguments(parts.trainer)
        parts.data.check(int(arguments.get("num_nodes", 1)))
        if parts.data.has_weights:
            parts.objective.check_reads_weight()
        if parts.data.caveat:
            log(parts.data.caveat)
        if self.resume is None:
            load_initial_weights(parts.model, config)
        info = RunInfo(self.resolved, parts.data.fingerprint, parts.data.source_names)
        module = build_module(parts, load_teachers(parts), info)
        checkpoint = None
        if self.resume is None:
            prepare_folder(run_dir)
        else:
            checkpoint = find_checkpoint(Path(self.resume), self.resolved, self.chosen, module)
        start = Start(module, parts, arguments, loggers, checkpoint)
        total_steps = parts.phases.total_steps
        if start.step < total_steps or not is_finished(run_dir, total_steps):
            return start
        if not self._may_be_finished:
            raise ValueError(
                f"{run_dir} is finished ({total_steps} steps); raise phases.NAME.samples to go on"
            )
        log(f"{run_dir} is finished ({total_steps} steps)")
        return None

    def fit(self, start: Start) -> Outcome:
        """Trains until the end of the run, a signal, or a rewind."""
        module, parts, step, run_dir = start.module, start.parts, start.step, self.run_dir
        phases: Phases = parts.phases
        keep_screen(run_dir, step)
        stop, saving = StopOnSignal(), saves(parts, run_dir)
        loggers = start.loggers.start(self.resolved, step)
        trainer = make_trainer(
            start.arguments, parts, stop, saving, run_dir, start.checkpoint, loggers
        )
        known = facts(module.model, parts.data, trainer, self.chosen)
        if is_first_process():
            freeze(run_dir, self.resolved, step, known)
        log(
            f"{self.config.name}: {phases.total_steps} steps "
            f"({passes(phases, known['epoch_size'])}), "
            f"{known['parameters']['total'] / 1e6:.1f} M parameters, {known['precision']}, "
            f"results in {run_dir}"
        )
        if step < phases.total_steps:
            path = start.checkpoint
            trainer.fit(module, datamodule=parts.data, ckpt_path=path, weights_only=True)
            step = trainer.global_step
        if isinstance(saving, RewindingCheckpoints) and saving.rewound_to is not None:
            is_rewound = stop.signum is None
            return Outcome(saving.rewound_to, phases, is_rewound, stop.signum)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        acted = next(c for c in callbacks if isinstance(c, ActOnMetrics))
        # A signal that comes with the step at which the run ends anyway changes nothing.
        signum = stop.signum if acted.stopped_by is None else None
        return Outcome(step, phases, signum=signum, stopped_by=acted.stopped_by)

    def finish(self, outcome: Outcome) -> int:
        """Writes the summary of a run that has ended; returns the exit status."""
        step, stopped_by = outcome.step, None
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
            write_summary(self.run_dir, self.resolved, outcome.phases, step, spent, stopped_by)
        return 0


def passes(phases: Phases, epoch_size: int | None) -> str:
    """How much a run sees: pairs, and epochs where the data have a size."""
    samples = phases.samples_before(phases.total_steps)
    if epoch_size is None:
        return f"{samples:,} pairs"
    return f"{samples / epoch_size:.1f} epochs of {epoch_size:,} pairs"
