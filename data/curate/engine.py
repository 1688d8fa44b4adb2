"""Where the tasks of a curation run.

In: a pure function over files and the items to call it with. Out: its results in the order of the
items, however many processes or machines work on them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Calls a function with many items."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Yields the results in the order of the items; an error of the function is raised."""
        ...


class Serial:
    """One after the other in this process."""

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)
