"""`counterpoint fit`: train a run, or continue one.

In: a run file and leaf overrides, or `--resume RUN_DIR`. Out: the run folder: `config.yaml`,
`metrics.jsonl`, `log.txt`, `checkpoints/`, `tensorboard/` and, at the end, `summary.json`.

`--resume auto` continues what the run folder holds, or starts there. It is implied where the same
command is started again by itself (torchrun with `--max_restarts`, SLURM's requeue).
"""

import signal
import time
from pathlib import Path
from typing import Any, cast

from ...data.order.steps import check_divides
from ...models.image import ImageTower
from ...models.two_tower import TwoTower
from ...models.weight_inheritance import inherit
from ...models.weights import load_weights, read_weights
from ...train.callbacks.early_stopping import ActOnMetrics
from ...train.callbacks.stop import StopOnSignal
from ...train.checkpointing import checkpoint as checkpoints
from ...train.checkpointing.rewind import RewindingCheckpoints
from ...train.grad_clip.fixed import check_no_other
from ...train.module import ContrastiveModule
from .. import arguments
from ..arguments import AUTO
from ..config import parser as run_config
from ..run.build import build
from ..run.devices import world_size
from ..run.env import (
    choose_attention,
    is_first_process,
    prepare,
    say,
    share_cores,
    starts_again_by_itself,
    under_torchrun,
)
from ..run.facts import facts
from ..run.folder import freeze, is_finished, prepare_folder, write_summary
from ..run.load import load_run, weights_file
from ..run.loggers import Loggers
from ..run.precision import settle_precision
from ..run.resume import find_checkpoint
from ..run.run_log import RunLog, keep_screen
from ..run.teachers import attach
from ..run.trainer import make_trainer, saves, trainer_arguments


def main(argv: list[str]) -> int:
    """Parses the command line and trains; returns 0, or 128 + the signal that stopped the run.

    A run that one of the user's callbacks ends has done what it was told: nobody is to start it
    again.
    """
    prepare()
    with RunLog():
        return start(argv)


def start(argv: list[str]) -> int:
    """Parses the command line and trains, as `main` says."""
    written, resume = arguments.fit(argv)
    if resume is None and starts_again_by_itself():
        resume = AUTO
    parser = run_config.make_parser()
    config = run_config.parse_written(parser, written)
    num_processes = world_size(config.trainer, written.place)
    for name, phase in config.phases.items():
        check_divides(phase.batch_size, num_processes, f"phases.{name}.")
    fit_machine(config, resume)
    resolved = run_config.plain(parser, config)
    return fit(config, resolved, parser, resume)


def fit_machine(config: Any, resume: str | None) -> None:
    """Settles what follows from the machine: the precision for `auto`, threads, kernels."""
    run_dir = Path(resume) if resume not in (None, AUTO) else run_dir_of(config)
    is_resumed = resume is not None and checkpoints.newest(run_dir) is not None
    settle_precision(config.trainer, run_dir if is_resumed else None)
    choose_attention(config.trainer.precision)
    devices = str(config.trainer.devices)
    if under_torchrun() is None and config.trainer.accelerator == "cpu" and devices.isdigit():
        share_cores(int(devices))


def fit(config: Any, resolved: dict[str, Any], parser: Any, resume: str | Path | None) -> int:
    """Trains to the end, as often as the run goes back by itself; returns the exit status."""
    started, used = time.time(), time.process_time()
    while (status := train(config, resolved, parser, resume, started, used)) is None:
        resume = run_dir_of(config)
    return status


def train(
    config: Any,
    resolved: dict[str, Any],
    parser: Any,
    resume: str | Path | None,
    started: float,
    used: float,
) -> int | None:
    """Builds everything, trains, writes the summary.

    Args:
        config: parsed.
        resolved: the same as plain values.
        parser: that made it.
        resume: run folder to continue; `auto`: the run's own, if there is something in it.
        started: when this process began (seconds since the epoch).
        used: processor time (seconds) it had used then.

    Returns:
        The exit status; None: the run has gone back to a checkpoint and is to be resumed.
    """
    run_dir = run_dir_of(config)
    # Then a run that is finished is no mistake: its last start was killed on its way out.
    resume_is_implied = resume == AUTO or starts_again_by_itself()
    if resume == AUTO:
        resume = run_dir if checkpoints.newest(run_dir) else None
    loggers = Loggers(resolved["trainer"].get("logger"), config.name, run_dir, resume is not None)
    module, parts = build(parser, config)
    module.resolved_config = resolved
    arguments = trainer_arguments(parts.trainer)
    check_no_other(parts.grad_clip, arguments.get("gradient_clip_val"))
    parts.data.check(int(arguments.get("num_nodes", 1)))
    if parts.data.caveat:
        say(parts.data.caveat)
    module.fingerprint, module.sources = parts.data.fingerprint, parts.data.source_names
    total_steps = module.phases.total_steps
    checkpoint = None
    if resume is None and not (config.init_from or config.inherit_from):
        image = cast(ImageTower, module.model.image)
        if loaded := image.load_pretrained():
            say(loaded)
    if resume is None and config.init_from:
        initialise(module.model, config.init_from)
    if resume is None and config.inherit_from:
        if config.init_from:
            raise ValueError("give init_from (equal shapes) or inherit_from (slices), not both")
        larger = load_run(config.inherit_from).model
        say(f"inherit_from {config.inherit_from}: {inherit(module.model, larger)}")
    attach(module, parts)
    chosen = run_config.without_defaults(parser, config)
    if resume is None:
        prepare_folder(run_dir)
    else:
        checkpoint = find_checkpoint(Path(resume), resolved, chosen, module)
    step = 0 if checkpoint is None else checkpoints.step_of(checkpoint)
    if step >= total_steps and is_finished(run_dir, total_steps):
        if resume_is_implied:
            say(f"{run_dir} is finished ({total_steps} steps)")
            return 0
        raise ValueError(
            f"{run_dir} is finished ({total_steps} steps); raise phases.NAME.samples to go on"
        )
    keep_screen(run_dir, step)
    stop, saving = StopOnSignal(), saves(parts, run_dir)
    started_loggers = loggers.start(resolved, step)
    trainer = make_trainer(
        arguments, parts, stop, saving, run_dir, total_steps, checkpoint, started_loggers
    )
    known = facts(module.model, parts.data, trainer, chosen)
    if is_first_process():
        freeze(run_dir, resolved, step, known)
    say(
        f"{config.name}: {total_steps} steps ({passes(module, known['epoch_size'])}), "
        f"{known['parameters']['total'] / 1e6:.1f} M parameters, {known['precision']}, "
        f"results in {run_dir}"
    )
    if step < total_steps:
        trainer.fit(module, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
        step = trainer.global_step
    if isinstance(saving, RewindingCheckpoints) and saving.rewound_to is not None:
        if stop.signum is None:
            return None
        step = saving.rewound_to
    stopped_by = None
    if step < total_steps:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        acted = next(c for c in callbacks if isinstance(c, ActOnMetrics))
        stopped_by = acted.stopped_by or "a callback"
        # A signal that comes with the step at which the run ends anyway changes nothing.
        signum = stop.signum if acted.stopped_by is None else None
        why = stopped_by if signum is None else signal.Signals(signum).name
        say(
            f"stopped by {why} after step {step}; "
            f"continue with: counterpoint fit --resume {run_dir}"
        )
        if signum is not None:
            return 128 + signum
    if is_first_process():
        spent = {
            "seconds_last_process": time.time() - started,
            "cpu_seconds_last_process": time.process_time() - used,
        }
        write_summary(run_dir, resolved, module.phases, step, spent, stopped_by)
    return 0


def passes(module: ContrastiveModule, epoch_size: int | None) -> str:
    """How much a run sees: pairs, and epochs where the data have a size."""
    samples = module.phases.samples_before(module.phases.total_steps)
    if epoch_size is None:
        return f"{samples:,} pairs"
    return f"{samples / epoch_size:.1f} epochs of {epoch_size:,} pairs"


def run_dir_of(config: Any) -> Path:
    """Where results go."""
    return Path(config.run_dir or f"runs/{config.name}")


def initialise(model: TwoTower, source: str) -> None:
    """Loads the weights of a run folder or file and says what matched."""
    path = weights_file(source)
    say(f"init_from {path}: {load_weights(model, read_weights(path), str(path))}")
