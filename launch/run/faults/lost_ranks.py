"""A rank or a loader worker that has ended while this process trains.

In: the error that this process meets. Out: a sentence about who is gone, if that is the error.
"""

import re
import signal
import time
from typing import Any

import torch.distributed as dist

# What gloo says when the other end of a connection is closed; it has no type of its own.
OF_GLOO = ("gloo/transport", "Connection closed by peer", "Connection reset by peer")
OF_LOADER = re.compile(r"DataLoader worker \(pid(?:\(s\))? .*\) (.*)")
WAIT = 5.0  # seconds within which a process that has ended is seen to have


def lost_ranks(error: BaseException, trainer: Any) -> str | None:
    """Returns which processes have ended, as far as is known here; None: it is another error."""
    if not isinstance(error, RuntimeError):
        return None
    if match := OF_LOADER.search(str(error)):
        return (
            f"a loader worker has ended ({match[1].partition('. ')[0].rstrip('. ')}); if memory "
            "was short, lower data.num_workers"
        )
    if not isinstance(error, dist.DistError) and all(w not in str(error) for w in OF_GLOO):
        return None
    # Those that Lightning has started; others have a launcher that says how they ended.
    started = getattr(trainer.strategy.launcher, "procs", [])
    end = time.monotonic() + WAIT
    while started and not any(p.poll() for p in started) and time.monotonic() < end:
        time.sleep(0.1)
    first = trainer.global_rank + 1
    names = [f"rank {first + i} ({how(p.returncode)})" for i, p in enumerate(started) if p.poll()]
    if not names:
        return "another process of the run has ended; what it printed last says why"
    return f"{' and '.join(names)} has ended; what it printed last, if anything, says why"


def how(status: int) -> str:
    """How a process ended, by its exit status."""
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}: out of memory?" if status == -signal.SIGKILL else name
