"""How far a pass over data has come: a bar on a terminal, now and then a line in a log.

In: items or counts, as they are done. Out: on standard error, nothing that a program reads.
"""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

SECONDS = 10.0  # between two lines, and before the first


def track() -> Callable[[Iterable[Any], int, str], Iterable[Any]]:
    """Returns what shows the progress of (items, total, description) and yields the items."""
    if not has_terminal():
        return Lines().track
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    return lambda items, total, description: bar(items, description, total, console=console)


@contextlib.contextmanager
def counter(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that shows them."""
    if not has_terminal():
        lines = Lines()
        yield lambda done, total: lines.show(description, done, total)
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def has_terminal() -> bool:
    """Whether there is a terminal to draw a bar on, and `rich` to draw it."""
    return sys.stderr.isatty() and importlib.util.find_spec("rich") is not None


class Lines:
    """Prints a line every ten seconds, however many passes go by."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def track(self, items: Iterable[Any], total: int, description: str) -> Iterator[Any]:
        """Yields the items."""
        for done, item in enumerate(items, 1):
            yield item
            self.show(description, done, total)

    def show(self, description: str, done: int, total: int) -> None:
        """Prints how many are done, if it is time to."""
        if (now := time.monotonic()) - self._last >= SECONDS:
            self._last = now
            share = f" ({done / total:.0%})" if total else ""
            print(f"{description}: {done:,} of {total:,}{share}", file=sys.stderr, flush=True)
