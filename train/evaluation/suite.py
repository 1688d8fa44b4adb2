"""Suites: named tasks, written as YAML.

    root: data            # where relative paths start; the caller's data_root replaces it
    tasks:
      pets:
        class_path: counterpoint.train.evaluation.zeroshot.ZeroShot
        init_args:
          data: {class_path: counterpoint.data.image_sets.FolderSet, init_args: {path: pets}}
          templates: ["a photo of a {c}.", "a drawing of a {c}."]

In: the name of a packaged suite or a file. Out: a `Suite`. Equal `data` entries become one image
set, so that its features are computed once for all its tasks. `{import: open_clip.NAME}` in the
place of a value stands for what Python finds under that name, such as a list of class names.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ...data.image_sets import ImageSet
from .encode import ByteCache
from .task import Task


@dataclass
class Suite:
    """Tasks to run together.

    Attributes:
        name: First part of the names of its results.
        tasks: By name, in the order of the file.
        cache: Decoded images from one evaluation to the next.
    """

    name: str
    tasks: dict[str, Task]
    cache: ByteCache = field(default_factory=ByteCache)


def load_suite(suite: str | Path, data_root: str | Path | None = None) -> Suite:
    """Reads a suite; no data is touched yet.

    The suite is called as its file, or by its `name`, in which `{root}` is the folder that relative
    data paths start from.

    Relative data paths start from `data_root`, else from the suite's `root`. A relative `root`
    starts from the suite file's folder, or, for a packaged suite, from the working directory; so
    does a path when there is no `root`.

    Args:
        suite: A file that ends in `.yaml` or `.yml`, or a packaged suite's name.
        data_root: The folder that holds the data.

    Raises:
        ValueError: No such suite, or something in it is wrong.
    """
    path, base = _find(str(suite))
    name = path.name.rsplit(".", 1)[0]
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{suite} is not YAML: {' '.join(str(error).split())}") from error
    _check_keys(content, {"name", "root", "tasks"}, f"the suite {suite}")
    tasks = content.get("tasks")
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(f"the suite {suite} has no tasks; it needs `tasks: {{name: ...}}`")
    root = Path(data_root) if data_root is not None else base / (content.get("root") or "")
    if "name" in content:
        name = str(content["name"]).replace("{root}", root.resolve().name)
    built: dict[str, ImageSet] = {}
    suite_tasks: dict[str, Task] = {}
    for key, spec in tasks.items():
        task = _build(spec, f"task '{key}' of {suite}", root, built)
        if not isinstance(task, Task):
            raise ValueError(f"task '{key}' of {suite}: {type(task).__name__} is not a Task")
        suite_tasks[str(key)] = task
    return Suite(name, suite_tasks)


def _find(suite: str) -> tuple[Any, Path]:
    """Returns the suite's file, and the folder its `root` starts from."""
    path = Path(suite)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ValueError(f"there is no suite file {suite}")
        return path, path.parent
    folder = resources.files("counterpoint.configs") / "suite"
    packaged = sorted(f.name.removesuffix(".yaml") for f in folder.iterdir())
    if suite not in packaged:
        raise ValueError(
            f"there is no packaged suite '{suite}' (there are: {', '.join(packaged)}); a suite of "
            "your own is given by the path of its .yaml file"
        )
    return folder / f"{suite}.yaml", Path()


def _build(spec: Any, where: str, root: Path, built: dict[str, ImageSet]) -> Any:
    """Makes the object of a `class_path` with its `init_args`; anything else is returned as is."""
    if isinstance(spec, Mapping) and spec.keys() == {"import"}:
        return _import(str(spec["import"]), f"{where.removeprefix('in ')}: import")
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        if where.startswith("task"):
            raise ValueError(f"{where} has no class_path; write `class_path:` and `init_args:`")
        return spec
    where = where.removeprefix("in ")
    _check_keys(spec, {"class_path", "init_args"}, where)
    same = json.dumps(spec, sort_keys=True, default=str)
    if same in built:
        return built[same]
    cls = _import(str(spec["class_path"]), f"{where}: class_path")
    if not isinstance(cls, type):
        raise ValueError(f"{where}: class_path {spec['class_path']} is not a class")
    arguments = spec.get("init_args") or {}
    parameters = inspect.signature(cls).parameters
    _check_keys(arguments, set(parameters), f"{where}: {cls.__name__}")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise ValueError(f"{where}: {cls.__name__} needs `{missing[0]}` in its init_args")
    values = {
        name: _build(value, f"in {where}.{name}", root, built) for name, value in arguments.items()
    }
    try:
        made = cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if isinstance(made, ImageSet):
        made.root = root
        built[same] = made
    return made


def _import(path: str, where: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} {path} cannot be imported ({error})") from error


def _check_keys(found: Any, known: set[str], where: str) -> None:
    """Raises ValueError unless `found` is a mapping with known keys only."""
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} is {found!r}, not a mapping with {', '.join(sorted(known))}")
    unknown = sorted(str(key) for key in found if key not in known)
    if unknown:
        raise ValueError(
            f"{where} has the unknown key '{unknown[0]}'; known: {', '.join(sorted(known))}"
        )
