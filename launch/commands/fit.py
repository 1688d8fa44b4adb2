"""`counterpoint fit`: train a run, or continue one.

In: a run file and leaf overrides, or `--resume RUN_DIR`. Out: the run folder: `config.yaml`,
`metrics.jsonl`, `log.txt`, `checkpoints/`, `tensorboard/` and, at the end, `summary.json`.

`--resume auto` continues what the run folder holds, or starts there. It is implied where the same
command is started again by itself (torchrun with `--max_restarts`, SLURM's requeue).
"""

from pathlib import Path
from typing import Any

from ...data.order.steps import check_divides
from ...train.checkpointing import checkpoint as checkpoints
from ..config import fit_arguments
from ..config import parser as run_config
from ..config.fit_arguments import AUTO
from ..run.devices import world_size
from ..run.env import choose_attention, prepare, share_cores, starts_again_by_itself, under_torchrun
from ..run.folder import run_dir_of
from ..run.precision import settle_precision
from ..run.run_log import RunLog
from ..run.train import Run


def main(argv: list[str]) -> int:
    """Parses the command line and trains; returns 0, or 128 + the signal that stopped the run.

    A run that one of the user's callbacks ends returns 0, so that it is not started again.
    """
    prepare()
    with RunLog():
        return start(argv)


def start(argv: list[str]) -> int:
    """Parses the command line and trains; see `main`."""
    written, resume = fit_arguments.parse(argv)
    if resume is None and starts_again_by_itself():
        resume = AUTO
    parser = run_config.make_parser()
    config = run_config.parse_written(parser, written)
    num_processes = world_size(config.trainer, written.place)
    for name, phase in config.phases.items():
        check_divides(phase.batch_size, num_processes, f"phases.{name}.")
    fit_machine(config, resume)
    return Run(parser, config, resume).train()


def fit_machine(config: Any, resume: str | None) -> None:
    """Settles what follows from the machine: the precision for `auto`, threads, kernels."""
    run_dir = Path(resume) if resume not in (None, AUTO) else run_dir_of(config)
    is_resumed = resume is not None and checkpoints.newest(run_dir) is not None
    settle_precision(config.trainer, run_dir if is_resumed else None)
    choose_attention(config.trainer.precision)
    devices = str(config.trainer.devices)
    if under_torchrun() is None and config.trainer.accelerator == "cpu" and devices.isdigit():
        share_cores(int(devices))
