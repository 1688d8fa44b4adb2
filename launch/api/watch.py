"""A run's checkpoints, as another process writes them.

In: a run folder. Out: each checkpoint once, until the run has ended.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ...train.checkpointing.checkpoint import checkpoints_in, step_of
from ...train.distributed import gather_objects
from ..run.load import CONFIG

SECONDS = 5.0  # between two looks


def new_checkpoints(run_dir: Path, is_done: Callable[[int], bool]) -> Iterator[Path]:
    """Yields the checkpoints of a run, those there are and those that come, by rising step.

    Collective: every process gets what the first one sees.

    Args:
        run_dir: folder of the run.
        is_done: whether a step needs no checkpoint.
    """
    taken: set[Path] = set()
    while True:
        # Asked first: what is saved before the summary is seen below.
        ended = has_ended(run_dir)
        new = [
            path
            for path in sorted(checkpoints_in(run_dir), key=step_of)
            if path not in taken and not is_done(step_of(path))
        ]
        new, ended = gather_objects((new[:1], ended))[0]
        if new:
            taken.add(new[0])
            yield new[0]
        elif ended:
            return
        else:
            time.sleep(SECONDS)


def has_ended(run_dir: Path) -> bool:
    """Whether a run has written its summary since it was last started.

    A run that a signal stopped has not: it is to be resumed. Each start writes the configuration.
    """
    try:
        summary, config = (run_dir / name for name in ("summary.json", CONFIG))
        return summary.stat().st_mtime_ns >= config.stat().st_mtime_ns
    except FileNotFoundError:
        return False
