"""Runs many small pieces of work in a child that may crash or hang.

In: a function of a number that returns a word. Out: how often each word came up, the longest time
and the largest memory that one piece took. A piece that never ends is ended after minutes.
"""

import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from waiting import PATIENCE


@dataclass(frozen=True)
class Report:
    """Counts of outcomes, CPU seconds of the slowest piece and its number (to be printed, no test
    judges by them), growth of memory in MiB."""

    outcomes: Counter
    seconds: float
    slowest: int
    memory: float


def peak_memory() -> float:
    """Returns the most memory this process ever held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_here(work: Callable[[int], str], count: int) -> Report:
    """Does `work(0)`, `work(1)`, ..., `work(count - 1)` in this process."""
    outcomes: Counter = Counter()
    before, longest, slowest = peak_memory(), 0.0, 0
    for number in range(count):
        start = time.process_time()
        outcomes[work(number)] += 1
        seconds = time.process_time() - start
        if seconds > longest:
            longest, slowest = seconds, number
    return Report(outcomes, longest, slowest, peak_memory() - before)


def run_watched(work: Callable[[int], str], count: int, patience: float = PATIENCE) -> Report:
    """Does the same in a child; fails when it dies, or is silent on one piece for too long."""
    context = multiprocessing.get_context("fork")
    progress = context.Value("q", -1, lock=False)
    receiver, sender = context.Pipe(duplex=False)

    def numbered(number: int) -> str:
        progress.value = number
        return work(number)

    def child() -> None:
        sender.send(run_here(numbered, count))

    process = context.Process(target=child, daemon=True)
    process.start()
    sender.close()
    try:
        last, since = -1, time.monotonic()
        while not receiver.poll(0.5):
            if progress.value != last:
                last, since = progress.value, time.monotonic()
            assert process.is_alive() or receiver.poll(), f"piece {last}: exit {process.exitcode}"
            assert time.monotonic() - since < patience, f"piece {last} takes over {patience} s"
        try:
            return receiver.recv()
        except EOFError:
            process.join()
            raise AssertionError(f"piece {progress.value} ended the process") from None
    finally:
        process.kill()
        process.join()
