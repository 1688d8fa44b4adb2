"""The global quantities of filters as files: arrays by name.

In: a state. Out: an `.npz` file, whole or absent; each process loads it once.
"""

import functools
from pathlib import Path

import numpy as np

from ..files import whole_file
from .base import State

STATE = "state.npz"


def save(path: Path, state: State) -> None:
    """Writes a state, and its folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part, open(part, "wb") as file:
        np.savez(file, allow_pickle=False, **state)


def load(path: Path) -> State:
    """Reads a state."""
    with np.load(path) as file:
        return dict(file)


@functools.lru_cache(maxsize=2)
def state_of(folder: Path) -> State:
    """Returns the state of the filter whose files are in a folder."""
    return load(folder / STATE)
