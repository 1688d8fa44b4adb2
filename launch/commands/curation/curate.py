"""`counterpoint curate FILE`: which samples of a pool are kept, by filters over its score table.

In: a curation (filters in sequence), a score table, stores. Out: `OUT/keep.parquet` for
`data.keep_lists`, and `OUT/summary.json`. No tar is read or written.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ....data.curate.engine import Processes, RayTasks
from ....data.curate.runner import Curation
from ....data.curate.stores import Store
from ....data.curate.table import Table
from ... import arguments
from ...config.curations import load_curation
from ..progress import track


def main(argv: list[str]) -> int:
    """Runs a curation and prints what each filter has left."""
    options = arguments.curate().parse_args(argv)
    filters = load_curation(options.file)
    table, stores = Table(options.table), named_stores(options.store)
    with engine_of(options.workers, options.ray, options.task_memory) as engine:
        summary = Curation(table, filters, stores, options.out, engine, track()).run()
    print("\n".join(told(summary)))
    print(f"use it with --data.keep_lists '[{options.out / 'keep.parquet'}]'")
    return 0


def engine_of(
    workers: int | None, ray: str | None, task_memory: float | None
) -> Processes | RayTasks:
    """Returns the engine that the options name, to be used as a context manager.

    Args:
        workers: processes of this machine.
        ray: address of a Ray cluster.
        task_memory: GiB that Ray sets apart for a task.

    Raises:
        ValueError: the options contradict one another, or there is no such cluster.
    """
    if ray is None:
        if task_memory is not None:
            raise ValueError("--task_memory is for a Ray cluster; name it with --ray ADDRESS")
        return Processes() if workers is None else Processes(workers)
    if workers is not None:
        raise ValueError("--workers and --ray cannot be given together: name one of them")
    return RayTasks(ray, None if task_memory is None else int(task_memory * 2**30))


def named_stores(given: Sequence[str]) -> dict[str, Store]:
    """Returns the stores of `NAME=FOLDER` arguments.

    Raises:
        ValueError: one is not of that form, a name comes twice, or there is no such store.
    """
    stores = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not name.isidentifier():
            raise ValueError(f"--store {text}: write NAME=FOLDER, such as clip=stores/clip")
        if name in stores:
            raise ValueError(f"--store {text}: '{name}' is given already; give it another name")
        stores[name] = Store(Path(folder))
    return stores


def told(summary: dict[str, Any]) -> list[str]:
    """Returns a line for each filter, and one for the whole."""
    width = max(len(each["name"]) for each in summary["filters"])
    lines = []
    for each in summary["filters"]:
        why = " or ".join([*(f"lack {name}" for name in each["reads"]), "cannot be used"])
        lack = f"; {each['lack']:,} {why}" if each["lack"] else ""
        lines.append(
            f"  {each['name']:<{width}}  {each['seen']:>12,} -> {each['kept']:>12,}   "
            f"left out {each['left_out']:,}{lack}"
        )
    share = summary["kept"] / summary["samples"]
    lines.append(f"kept {summary['kept']:,} of {summary['samples']:,} samples ({share:.1%})")
    return lines
