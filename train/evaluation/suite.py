"""Tasks that are evaluated together."""

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
