"""Reads the YAML files that describe experiments, and refuses keys that mean nothing."""

from collections.abc import Set
from pathlib import Path
from typing import Any

import yaml

from ..config.run_files import refuse_repeated


def read_yaml(file: Path) -> Any:
    """Returns the content of a YAML file; {} of an empty one.

    Raises:
        ValueError: it is none, or a name comes twice, of which YAML would drop the first.
    """
    try:
        content = yaml.safe_load(file.read_bytes()) or {}
        refuse_repeated(file.read_text(encoding="utf-8"), file)
        return content
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML ({' '.join(str(error).split())}); mend it") from None


def check_keys(content: Any, known: Set[str], needed: Set[str], where: str) -> None:
    """Refuses what is no mapping, has an unknown key, or lacks a needed one."""
    if not isinstance(content, dict):
        keys = ", ".join(sorted(needed or known))
        raise ValueError(f"{where} is {content!r}; it needs the keys {keys}")
    for key in sorted(set(map(str, content)) - known):
        raise ValueError(f"{where}: unknown key {key}; known: {', '.join(sorted(known))}")
    if missing := sorted(needed - set(content)):
        which = f"keys {', '.join(missing)} are" if missing[1:] else f"key {missing[0]} is"
        raise ValueError(f"{where}: the {which} missing")


def check_seeds(seeds: Any, where: str) -> list[int]:
    """Returns the seeds, if they are a list of different whole numbers."""
    is_list = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    if not is_list or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{where}: seeds is {seeds}; write a list such as [0, 1]")
    return seeds
