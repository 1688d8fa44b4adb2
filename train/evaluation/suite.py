"""Suites: tasks that are evaluated together, and the images that they share."""

from dataclasses import dataclass, field

from .encode import ByteCache
from .task import Task


@dataclass
class Suite:
    """Tasks to run together.

    Attributes:
        name: first part of the names of its results.
        tasks: by name, in the order of the file.
        cache: decoded images from one evaluation to the next.
    """

    name: str
    tasks: dict[str, Task]
    cache: ByteCache = field(default_factory=ByteCache)
