"""Curations, read from YAML: filters in sequence, each by its packaged name or written out.

    filters:
      size: {config: basic, min_side: 100}     # configs/filter/basic.yaml, with another limit
      copies: exact_duplicates
      mine:
        class_path: my_filters.Sharp           # a class of your own
        init_args: {threshold: 0.5}

In: the name of a packaged curation or a file. Out: the filters by name. Paths in settings of
filters start where the command is run.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from ...data.curate.base import Filter
from .diagnosis import Fault, build
from .packaged import find
from .run_files import load, refuse_repeated


def load_curation(curation: str | Path) -> dict[str, Filter]:
    """Reads a curation, by its file or its packaged name.

    Raises:
        ValueError: no such curation, or something in it is wrong.
    """
    file = find(curation, "curation")
    content = load(file, "filters: {copies: exact_duplicates}")
    refuse_repeated(file.read_text(encoding="utf-8"), curation)
    for key in content:
        if key != "filters":
            raise ValueError(f"{curation}: {key}: there is no such key; there is filters")
    filters = content.get("filters")
    if not isinstance(filters, Mapping) or not filters:
        raise ValueError(
            f"{curation}: filters is {filters!r}; it takes names, each with a packaged filter or a "
            "class_path"
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--filter", type=Filter, required=True)
    return {
        str(name): build(parser, Filter, curation, f"filters.{name}", written, _with_config)
        for name, written in filters.items()
    }


def _with_config(written: Any, key: str) -> Any:
    """Returns class_path and init_args of a filter that may name a packaged one."""
    if isinstance(written, str):
        written = {"config": written}
    if not isinstance(written, Mapping) or not written.keys() & {"config", "class_path"}:
        raise Fault(key, f"is {written!r}; name a packaged filter, or write its class_path")
    if "config" not in written:
        return written
    settings = {name: value for name, value in written.items() if name != "config"}
    values = load(find(str(written["config"]), "filter"))
    return {**values, "init_args": {**(values.get("init_args") or {}), **settings}}
