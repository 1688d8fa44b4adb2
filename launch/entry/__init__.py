"""Counterpoint: contrastive image-text pretraining, from Python.

    model = counterpoint.load_model("runs/mine")
    module, data, trainer = counterpoint.build("mine.yaml")

Both are imported when they are first asked for: `import counterpoint` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Relative to the package that this folder becomes, not to where it stands here.
    from .launch.api.embedder import (  # pyright: ignore[reportMissingImports]
        load_model as load_model,
    )
    from .launch.api.training import build as build  # pyright: ignore[reportMissingImports]

HOMES = {"load_model": "launch.api.embedder", "build": "launch.api.training"}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
