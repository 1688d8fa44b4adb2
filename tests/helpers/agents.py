"""torch's elastic agent, which torchrun runs, around whole runs that start at once.

The agent is forked from a process that has imported the framework, and forks its workers: a restart
costs no imports. Everything else is as under torchrun: rendezvous, monitoring, signals.
"""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from processes import PRELOAD
from waiting import PATIENCE
from waiting import until as waited

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000


def worker(argv: list[str]) -> None:
    """One rank."""
    import torch

    torch.set_num_threads(1)
    from counterpoint.launch.cli import main

    if status := main(argv):
        sys.exit(status)


def agent(argv: list[str], log: str, namespace: str | None, options: dict[str, Any]) -> None:
    """One node: ends with 0 when all its workers have."""
    if namespace is not None:
        with open(f"/run/netns/{namespace}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), CLONE_NEWNET) == 0
        assert ctypes.CDLL(None).unshare(CLONE_NEWUTS) == 0
        socket.sethostname(namespace)
    os.environ.update(options.pop("environment", {}))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.setsid()
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        nproc_per_node=options.pop("nproc", 1),
        rdzv_backend="c10d",
        start_method="fork",
        **options,
    )
    elastic_launch(config, worker)(argv)


class Node:
    """A node's agent and workers.

    Args:
        argv: what `counterpoint` is called with.
        log: what all of them print.
        namespace: network namespace in which they live; also the name of the host.
        options: of LaunchConfig; `nproc` is nproc_per_node, `environment` what is set first.
    """

    def __init__(self, argv: list[str], log: Path, namespace: str | None = None, **options: Any):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOAD, "torch.distributed.launcher.api"])
        options = {"min_nodes": 1, "max_nodes": 1, "max_restarts": 3, "run_id": "test"} | options
        self.log = log
        self.process = context.Process(target=agent, args=(argv, str(log), namespace, options))
        self.process.start()

    def wait(self) -> int:
        """The agent's exit status."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.lose()
            raise AssertionError(f"the run hung:\n{self.text()[-3000:]}")
        return self.process.exitcode

    def lose(self) -> None:
        """Power off: every process of the node is killed."""
        for pid in [*descendants(self.process.pid), self.process.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.join()

    def text(self) -> str:
        """What was printed."""
        return self.log.read_text() if self.log.exists() else ""


def descendants(pid: int) -> list[int]:
    """Process ids of all descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    processes, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        processes += new
    return processes


def until(condition, node: Node) -> Any:
    """Waits for something to be true while the node's agent lives; returns it."""
    return waited(condition, node.process.is_alive, lambda: node.text()[-3000:])
