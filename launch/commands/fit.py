"""`counterpoint fit`: train a run, or continue one.

In: a run file and leaf overrides, or `--resume RUN_DIR`. Out: the run folder: `config.yaml`,
`metrics.jsonl`, `log.txt`, `checkpoints/`, `tensorboard/` and, at the end, `summary.json`.

`--resume auto` continues what the run folder holds, or starts there. It is implied where the same
command is started again by itself (torchrun with `--max_restarts`, SLURM's requeue).
"""

from ..config import fit_arguments
from ..config.fit_arguments import AUTO
from ..run.env import prepare, starts_again_by_itself
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
    return Run.of(written, resume).train()
