"""Whole runs in processes that can be killed, without paying for imports each time.

A fork server imports the framework once; every run is forked from it. Several ranks get the
environment that torchrun gives.
"""

import io
import multiprocessing
import multiprocessing.context
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from waiting import PATIENCE

PRELOAD = [
    "counterpoint.launch.commands.fit",
    "counterpoint.launch.run.load",
    "timm",
    "transformers",
]


def command(argv: list[str], environment: dict[str, str], log: str) -> None:
    """Runs one `counterpoint` command in this process; everything it prints goes to `log`."""
    os.environ.update(environment)

    def run() -> int:
        import torch

        torch.set_num_threads(1)
        from counterpoint.launch.cli import main

        return main(argv)

    printed_to(log, run)


def program(source: str, log: str) -> None:
    """Runs a program's text in this process; everything it prints goes to `log`."""
    printed_to(log, lambda: exec(compile(source, "program", "exec"), {"__name__": "__main__"}) or 0)


def printed_to(log: str, run: Callable[[], int]) -> None:
    """Calls `run` and ends this process with the status that it returns."""
    file = open(log, "a", buffering=1)  # noqa: SIM115 - lives as long as the process
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", 0), write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), write_through=True)
    try:
        status = run()
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def run_program(source: str, log: Path) -> tuple[int, str]:
    """Runs a program in a process that has imported `PRELOAD`; its exit status, what it printed."""
    process = fork_server().Process(target=program, args=(source, str(log)))
    process.start()
    process.join(PATIENCE)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"the program hung:\n{log.read_text()[-3000:]}")
    return process.exitcode, log.read_text()


def fork_server() -> multiprocessing.context.ForkServerContext:
    """The context whose processes are forked from one that has imported `PRELOAD`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


class Run:
    """The processes of one command, one a rank."""

    def __init__(self, argv: list[str], world_size: int, log: Path):
        from pool import free_port, torchrun_environment

        context, port = fork_server(), free_port()
        self.log = log
        self.processes = []
        for rank in range(world_size):
            environment = {} if world_size == 1 else torchrun_environment(rank, world_size, port)
            process = context.Process(
                target=command, args=(argv, environment, str(log)), daemon=False
            )
            process.start()
            self.processes.append(process)

    def alive(self) -> bool:
        """Whether every rank still runs."""
        return all(process.is_alive() for process in self.processes)

    def signal(self, number: int, ranks: list[int] | None = None) -> None:
        """Sends a signal to some ranks (all by default)."""
        for rank, process in enumerate(self.processes):
            if ranks is None or rank in ranks:
                os.kill(process.pid, number)

    def wait(self) -> list[int]:
        """Waits for the end; returns the exit status of each rank."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        if any(process.is_alive() for process in self.processes):
            self.signal(9)
            raise AssertionError(f"the run hung:\n{self.text()[-3000:]}")
        return [process.exitcode for process in self.processes]

    def text(self) -> str:
        """What the run printed."""
        return self.log.read_text() if self.log.exists() else ""


def fit(argv: list[str], world_size: int, log: Path) -> str:
    """Runs `counterpoint fit` to its end and returns what it printed."""
    run = Run(["fit", *argv], world_size, log)
    status = run.wait()
    assert status == [0] * world_size, (status, run.text()[-3000:])
    return run.text()
