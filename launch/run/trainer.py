"""The Trainer of a run: the user's choices, our loggers and callbacks, and what we own.

In: the trainer's slot, parsed. Out: a Trainer whose callbacks run in the order that checkpoints
need, with every logger that the user wants beside the metrics file.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger

from ...train.callbacks.capsule import Capsules
from ...train.callbacks.early_stopping import ActOnMetrics
from ...train.callbacks.evaluation import Evaluate
from ...train.callbacks.garbage import CollectGarbage
from ...train.callbacks.hang_watchdog import HangWatchdog
from ...train.callbacks.metrics import Metrics, MetricsFile
from ...train.callbacks.out_of_memory import OutOfMemory
from ...train.callbacks.sample_errors import CountErrors
from ...train.callbacks.stop import StopOnSignal
from ...train.callbacks.trace import Trace
from ...train.checkpointing import checkpoint as checkpoints
from ...train.checkpointing.checkpoint import Checkpoints
from ...train.checkpointing.rewind import RewindingCheckpoints
from ...train.checks import at_least
from ...train.strategies.choose import choose_strategy
from ..config.suites import load_suite
from .callbacks import checked_callbacks, progress_bar
from .devices import known_peak, world_size
from .env import cluster_plugins, under_torchrun
from .progress import progress

# Keys of the trainer's slot that are not Lightning's.
OURS = ("compile", "peak_tflops")


def trainer_arguments(chosen: Any) -> dict[str, Any]:
    """Returns the arguments as chosen, with torchrun's world and our strategies' names."""
    arguments = {k: v for k, v in vars(chosen).items() if v is not None and k not in OURS}
    if arguments.get("accumulate_grad_batches", 1) > 1:
        raise ValueError(
            "trainer.accumulate_grad_batches > 1 would contrast each pair with a part of the batch "
            "only; keep it 1 and set phases.NAME.batch_size to the global batch you want"
        )
    if "max_time" in arguments:
        raise ValueError(
            f"trainer.max_time={arguments['max_time']} would end the run without saving its last "
            "steps; leave it out and send SIGTERM when time is up, which saves (timeout 10h "
            "counterpoint fit ...)"
        )
    at_least("trainer.log_every_n_steps", arguments.get("log_every_n_steps", 1), 1)
    if world := under_torchrun():
        arguments["devices"], arguments["num_nodes"] = world
    num_processes = world_size(chosen)
    arguments["strategy"] = choose_strategy(arguments.get("strategy", "auto"), num_processes)
    return arguments


def make_trainer(
    arguments: dict[str, Any],
    parts: Any,
    stop: StopOnSignal,
    saving: Checkpoints,
    run_dir: Path,
    step: int | None,
    loggers: list[Logger],
) -> Trainer:
    """The trainer with our loggers and callbacks; `arguments` are the user's.

    `step` is what it goes on from; None: a new run.

    The user's loggers come first: callbacks that know one logger take the first for it.

    The order of the callbacks is that of events after a step: the optimizer's own, agree to stop,
    add up errors, log, evaluate, and save last, so that a checkpoint holds what was counted and
    logged.
    """
    file = MetricsFile(run_dir / "metrics.jsonl", step)
    given = parts.trainer.peak_tflops
    known = (
        None
        if given or parts.trainer.accelerator == "cpu"
        else known_peak(str(parts.trainer.precision or 32))
    )
    metrics = Metrics(given, parts.data.epoch_size, known)
    callbacks = checked_callbacks(arguments.get("callbacks") or [], parts.evaluation, run_dir)
    bar = progress_bar(arguments)
    own_bar = [] if "enable_progress_bar" in arguments else progress(callbacks, metrics)
    errors = CountErrors(saving, run_dir / "skipped.json")
    settings = parts.evaluation
    suite = None if settings.suite is None else load_suite(settings.suite, settings.data_root)
    evaluation = Evaluate(settings, suite, run_dir)
    ours = {
        "logger": [*loggers, file],
        "callbacks": [
            *parts.optim.callbacks(),
            *callbacks,
            stop,
            errors,
            metrics,
            *own_bar,
            evaluation,
            ActOnMetrics(file, evaluation, errors),
            saving,
            *compilation(parts.trainer.compile),
            *capsules(parts.trace.nonfinite, run_dir / "nonfinite"),
            Trace(parts.trace, run_dir / "trace"),
            CollectGarbage(),
            OutOfMemory(run_dir / "memory"),
            HangWatchdog(parts.watch.timeout, run_dir / "hang"),
        ],
        "plugins": [
            *(arguments.get("plugins") or []),
            *cluster_plugins(),
            checkpoints.AtomicCheckpointIO(),
        ],
        "max_steps": parts.phases.total_steps,
        "max_epochs": -1,
        "use_distributed_sampler": False,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": True,
        "enable_progress_bar": bar,
        "enable_model_summary": arguments.get("enable_model_summary", False),
        "enable_autolog_hparams": False,
        "default_root_dir": run_dir,
    }
    return Trainer(**{**arguments, **ours})


def saves(parts: Any, run_dir: Path, ends: Collection[int] = ()) -> Checkpoints:
    """Returns the callback that saves, and that rewinds if the guard is configured to.

    `ends` are the steps at which stages end.
    """
    kind = RewindingCheckpoints if parts.guard.rewinds else Checkpoints
    return kind(run_dir / "checkpoints", **vars(parts.checkpoint), ends=ends)


def capsules(most: int, folder: Path) -> list[Any]:
    """The callback that keeps steps that are not finite, if any are wanted."""
    return [Capsules(folder, most)] if most else []


def compilation(backend: str | None) -> list[Any]:
    """The callback that compiles the towers, if a backend is named."""
    if backend is None:
        return []
    from ...train.callbacks.compile import Compile

    return [Compile(backend)]
