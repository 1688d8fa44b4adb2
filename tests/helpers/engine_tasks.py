"""Tasks and filters for the tests of engines, where their workers can import them."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from counterpoint.data.curate.base import Filter, GroupFilter, numbers
from counterpoint.data.curate.filters.general.basic import Basic


def square(item):
    return item * item


def pid_of(item):
    return os.getpid()


def refuse(item):
    """Raises what the product tells a user, at the seventh item."""
    return Basic(max_aspect=0.5) if item == 7 else item


def divide(item):
    return 1 // (item - 7)


def die(item):
    if item == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def threads(item):
    """Returns the threads of NumPy's library and of pyarrow."""
    import pyarrow
    from threadpoolctl import threadpool_info

    return max(each["num_threads"] for each in threadpool_info()), pyarrow.cpu_count()


def node_of(item):
    import ray

    return ray.get_runtime_context().get_node_id()


def folder_of(item):
    return os.getcwd()


@dataclass(frozen=True)
class AboveMean(Filter):
    """Keeps rows at or above the mean width; kills its worker the first time.

    Args:
        killed: file that says that it has done so.
    """

    killed: Path | None = None

    reads = ("width",)
    writes = ("keep", "weight")

    def partial(self, rows):
        width = numbers(rows, "width")
        return {"sum": np.array(width.sum(dtype=np.int64)), "rows": np.array(len(width))}

    def finish(self, total):
        return {"mean": total["sum"] / total["rows"]}

    def apply(self, rows, state):
        if self.killed and numbers(rows, "key").max() > 0:
            kill_once(self.killed)
        width, key = numbers(rows, "width"), numbers(rows, "key")
        return {"keep": width >= state["mean"], "weight": np.where(key % 2 == 0, 2.0, 0.5)}


@dataclass(frozen=True)
class WidestOfHeight(GroupFilter):
    """Keeps the widest images of each height; kills its worker the first time."""

    killed: Path | None = None

    reads = ("width", "height")

    def groups(self, rows, state):
        return numbers(rows, "height")

    def apply_groups(self, rows, starts, state):
        if self.killed:
            kill_once(self.killed)
        width = numbers(rows, "width")
        widest = np.maximum.reduceat(width, starts[:-1])
        return {"keep": width == np.repeat(widest, np.diff(starts))}


def kill_once(path):
    """Kills this process, as a system short of memory does, if no process has been before."""
    try:
        path.open("x").close()
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)
