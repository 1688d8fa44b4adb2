"""Suites: tasks that are evaluated together, and the images that they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .encode import ByteCache
from .task import Task


@dataclass
class Suite:
    """Tasks to run together.

    Attributes:
        name: first part of the names of its results.
        tasks: by name, in the order of the file.
        average: a measure; its mean over the tasks is one more result.
        skips_absent: whether tasks whose data are not there are left out.
        absent: names of tasks that have been.
        cache: decoded images from one evaluation to the next.
    """

    name: str
    tasks: dict[str, Task]
    average: str | None = None
    skips_absent: bool = False
    absent: list[str] = field(default_factory=list)
    cache: ByteCache = field(default_factory=ByteCache)

    def leave_out_absent(self) -> None:
        """Leaves out tasks whose data are not there, if the suite does.

        Raises:
            ValueError: none is there.
        """
        if not self.skips_absent:
            return
        absent = [name for name, task in self.tasks.items() if not task.data.is_there]
        if absent and len(absent) == len(self.tasks):
            raise ValueError(
                f"the data of no task of suite '{self.name}' are there, such as "
                f"{self.tasks[absent[0]].data}; name the folder that holds them (data_root)"
            )
        self.absent += absent
        self.tasks = {name: task for name, task in self.tasks.items() if name not in absent}

    def turn(self, number: int, count: int) -> "Suite":
        """Returns the suite with those `count` tasks whose turn it is; decoded images are shared.

        Turn `number`, from 0, has the tasks from number * count on in the order of the file, which
        begins again at its end. A part has no average.
        """
        names = list(self.tasks)
        if count >= len(names):
            return self
        chosen = {(number * count + i) % len(names) for i in range(count)}
        tasks = {name: self.tasks[name] for i, name in enumerate(names) if i in chosen}
        return replace(self, tasks=tasks, average=None)

    @property
    def note(self) -> str:
        """What to log before its use; "": nothing."""
        if not self.absent:
            return ""
        total = len(self.tasks) + len(self.absent)
        return (
            f"{len(self.absent)} of {total} tasks are left out, whose data are not there: "
            f"{', '.join(self.absent)}"
        )

    def averages(self, results: Mapping[str, float]) -> dict[str, float]:
        """Returns the mean of `average` over tasks; its name says how many, if not all are."""
        if self.average is None:
            return {}
        names = {task: f"{self.name}/{task}/{self.average}" for task in self.tasks}
        if lacking := [task for task, name in names.items() if name not in results]:
            raise ValueError(
                f"the task '{lacking[0]}' has no measure {self.average}, which suite "
                f"'{self.name}' averages: name one that all have"
            )
        values = [results[name] for name in names.values()]
        of = f"_of_{len(values)}" if self.absent else ""
        return {f"{self.name}/average{of}/{self.average}": sum(values) / len(values)}
