"""The value that a shipped configuration has at a dotted key, defaults of its classes included.

A place is `FILE KEY`: a file of configs/ without its ending, such as `objective/cloob` or
`run/recipes/laclip`, and a key in it, of a part without its slot: `terms.cloob.scale`,
`phases.train.learning_rate`, `stages.masked.phases.masked.samples`. `init_args` is left out. Where
the file leaves a key to its class, the value is the default of the class's signature, and where
that is None, the attribute of the term as it is built. In the place of a file an import path: the
default of a class's argument (`counterpoint.losses.entailment.EuclideanCone min_radius`), or a
constant of a module (`counterpoint.models.two_tower MAX_LOGIT_SCALE`).
"""

import functools
import math
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from counterpoint.data.recipe import View
from counterpoint.data.stream.module import make_pairs
from counterpoint.launch.config import signatures
from counterpoint.launch.config.run_files import SLOTS, read
from counterpoint.launch.config.stages import split_stages
from counterpoint.losses.base import Term
from counterpoint.losses.objective import Objective
from counterpoint.losses.scalars import Scalar
from counterpoint.models.two_tower import TwoTower
from counterpoint.train.ema import EmaConfig
from counterpoint.train.optim.adamw import AdamW
from counterpoint.train.phases import Phase

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Classes that no file names.
KINDS: dict[str, Any] = {
    "objective": Objective,
    "optim": AdamW,
    "model": TwoTower,
    "data": make_pairs,
    "ema": EmaConfig,
    "phases.*": Phase,
    "data.views.*": View,
}


def value(place: str) -> Any:
    """Returns what stands at a place; numbers, texts, lists and mappings as in YAML.

    Raises:
        ValueError: there is no such file or key.
    """
    file, _, key = place.partition(" ")
    if file.startswith("counterpoint."):
        return _plain(_of_code(file, key))
    folder, *_ = file.split("/")
    path = CONFIGS / f"{file}.yaml"
    if not path.is_file() or not key:
        raise ValueError(f"{place}: there is no configs/{file}.yaml, or no key behind it")
    parts = key.split(".")
    if folder != "run":
        slot = [folder] if folder in SLOTS else []
        tree = {folder: _loaded(path)} if slot else _loaded(path)
        return _plain(_walk(tree, "", [*slot, *parts], place))
    stages = _stages(path)
    if parts[0] == "stages":
        _, stage, *parts = parts
    else:
        stage = ""
    if stage not in stages:
        raise ValueError(f"{place}: the run has the stages {list(stages)}")
    return _plain(_walk(stages[stage], "", parts, place))


def comments(file: str) -> str:
    """Returns the comments of a file of configs/ and of the parts that it names, as one line."""
    path = CONFIGS / f"{file}.yaml"
    text = path.read_text(encoding="utf-8")
    for part in re.findall(r"^\s*\w+: ((?:\.\./)+[\w/]+\.yaml)$", text, re.MULTILINE):
        text += "\n" + (path.parent / part).read_text(encoding="utf-8")
    found = [line.split("#", 1)[1].strip() for line in text.splitlines() if "#" in line]
    return " ".join(" ".join(found).split())


def same(shipped: Any, published: Any) -> bool:
    """Whether two values are equal, numbers up to rounding."""
    if isinstance(shipped, dict) and isinstance(published, dict):
        equal = (same(shipped[k], published[k]) for k in shipped if k in published)
        return shipped.keys() == published.keys() and all(equal)
    if isinstance(shipped, list) and isinstance(published, list):
        return len(shipped) == len(published) and all(map(same, shipped, published))
    if any(isinstance(one, str | bool | None) for one in (shipped, published)):
        return type(shipped) is type(published) and shipped == published
    return shipped == pytest.approx(published, rel=1e-6)


@functools.cache
def _loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@functools.cache
def _stages(path: Path) -> dict[str, dict[str, Any]]:
    return {name: own.whole() for name, own in split_stages(read([f"--config={path}"])).items()}


def _walk(node: Any, at: str, parts: list[str], place: str) -> Any:
    """The value `parts` below a node that stands at the dotted key `at`."""
    if not parts:
        return node
    head, *rest = parts
    below = f"{at}.{head}".lstrip(".")
    if not isinstance(node, dict):
        if not hasattr(node, head):
            raise ValueError(f"{place}: there is nothing at {below}")
        return _walk(getattr(node, head), below, rest, place)
    if at == "objective.weights" and head not in node:
        return 1.0  # what a term counts for whose weight is not named
    if head == "class_path" and head in node:
        return node[head]
    kind = _kind(node, at)
    arguments = node.get("init_args") or {} if "class_path" in node else node
    if head in arguments:
        found = arguments[head]
    elif kind is not None and head in signatures.parameters(kind):
        found = signatures.parameters(kind)[head].default
        if below == "objective.weights":
            found = {}
        if found is None and isinstance(kind, type) and issubclass(kind, Term):
            found = getattr(_built(yaml.safe_dump(node)), head, None)
    elif not at and head in SLOTS:
        found = None  # a slot that the run leaves empty
    else:
        raise ValueError(f"{place}: there is no {below}")
    if found is None:  # of an empty slot, or of a class that is not there, all keys are empty
        return None
    return _walk(found, below, rest, place)


def _of_code(path: str, key: str) -> Any:
    found = pkgutil.resolve_name(path)
    if not isinstance(found, type):
        return getattr(found, key)
    return _walk({"class_path": path}, "", key.split("."), f"{path} {key}")


def _kind(node: dict[str, Any], at: str) -> Any:
    if "class_path" in node:
        return pkgutil.resolve_name(node["class_path"])
    return KINDS.get(at) or KINDS.get(f"{at.rpartition('.')[0]}.*")


@functools.cache
def _built(term: str) -> Term:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--term", type=Term)
    return parser.instantiate(parser.parse_object({"term": yaml.safe_load(term)})).term


def _plain(found: Any) -> Any:
    if isinstance(found, Scalar):
        return found().item()
    if isinstance(found, tuple | list):
        return [_plain(one) for one in found]
    if isinstance(found, float) and math.isfinite(found) and found.is_integer():
        return found
    return found
