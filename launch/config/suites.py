"""Suites of evaluation tasks, read from YAML.

    root: data            # where relative paths start; the caller's data_root replaces it
    average: top1         # a measure; its mean over the tasks is one more result
    absent: skip          # leave out, and name, tasks whose data are not there
    tasks:
      pets:
        class_path: counterpoint.train.evaluation.zero_shot.classification.ZeroShot
        init_args:
          data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: {path: pets}}
          templates: ["a photo of a {c}.", "a drawing of a {c}."]

In: the name of a packaged suite or a file. Out: a `Suite`. Equal image sets become one, so that its
features are computed once for all its tasks. `{import: open_clip.NAME}` in the place of a value
stands for what Python finds under that name, such as a list of class names.
"""

import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser

from ...data.image_sets import ImageSet
from ...train.evaluation.suite import Suite
from ...train.evaluation.task import Task
from .diagnosis import Fault, build, listed
from .packaged import find
from .run_files import load

KEYS = ["name", "root", "tasks", "average", "absent"]


def load_suite(suite: str | Path, data_root: str | Path | None = None) -> Suite:
    """Reads a suite, by its file or its packaged name; no data is touched yet.

    The suite is called as its file, or by its `name`, in which `{root}` is the folder that relative
    data paths start from.

    Relative data paths start from `data_root`, else from the suite's `root`. A relative `root`
    starts from the suite file's folder, or, for a packaged suite, from the working directory; so
    does a path when there is no `root`.

    Raises:
        ValueError: no such suite, or something in it is wrong.
    """
    path = find(suite, "suite")
    content = load(path, "tasks: {digits: {class_path: CLASS}}")
    for key in content:
        if key not in KEYS:
            raise ValueError(f"{suite}: {key}: there is no such key; there are {listed(KEYS)}")
    tasks = content.get("tasks")
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(f"{suite}: tasks is {tasks!r}; it takes names, each with a class_path")
    base = path.parent if Path(suite).expanduser().is_file() else Path()
    root = Path(data_root) if data_root is not None else base / str(content.get("root") or "")
    name = str(content.get("name", path.stem)).replace("{root}", root.resolve().name)
    parser = _parser(root)
    built = {
        str(key): build(parser, Task, suite, f"tasks.{key}", written, _values)
        for key, written in tasks.items()
    }
    absent = content.get("absent")
    if absent not in (None, "skip"):
        raise ValueError(f"{suite}: absent is {absent!r}; it takes skip, or is left out")
    return Suite(name, built, content.get("average"), absent is not None)


def _parser(root: Path) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--task", type=Task, required=True)
    sets: dict[str, ImageSet] = {}

    def image_set(kind: type[ImageSet], *, applied_instantiation_links: Any, **values: Any) -> Any:
        name = f"{kind} {values}"
        if name not in sets:
            sets[name] = kind(**values)
            sets[name].root = root
        return sets[name]

    parser.add_instantiator(image_set, ImageSet)
    return parser


def _values(written: Any, key: str) -> Any:
    if written is None:
        raise Fault(key, "is empty; write class_path: CLASS below it, and its init_args")
    return _with_imports(written, key)


def _with_imports(value: Any, key: str) -> Any:
    """Replaces each `{import: NAME}` by what has that name in Python."""
    if isinstance(value, list):
        return [_with_imports(item, key) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() != {"import"}:
        return {name: _with_imports(item, f"{key}.{name}") for name, item in value.items()}
    key, name = f"{key}.import", str(value["import"])
    try:
        imported = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Fault(key, f"{name} cannot be imported ({error})") from error
    if isinstance(imported, ModuleType):  # jsonargparse cannot copy it
        raise Fault(key, f"{name} is a module; name a value in it, such as {name}.NAMES")
    return imported
