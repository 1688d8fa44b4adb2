"""Measures that are means over items, with the outcome of each item.

In: what a task found for each image or text. Out: the measure, and a file that two runs can be
compared by item for item (`counterpoint ablate`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.files import whole_file

FILE = "outcomes.npz"  # in a run's folder: those of the evaluation after the last step


@dataclass(frozen=True)
class Outcomes:
    """A measure, and what it is the mean of.

    Attributes:
        value: the measure, the (weighted) mean of `values`.
        values: of each item, such as 1 for a right answer and 0 for a wrong one, [n].
        keys: names of the items, the same for every model that is measured on them.
        weights: how much each item counts, [n]; None: all alike.
    """

    value: float
    values: np.ndarray
    keys: Sequence[str]
    weights: np.ndarray | None = None

    def __float__(self) -> float:
        return self.value


def mean_of_groups(groups: Sequence["float | Outcomes"]) -> "float | Outcomes":
    """Returns the plain mean of a measure's groups, whose items then count by group."""
    value = sum(map(float, groups)) / len(groups)
    parts = [group for group in groups if isinstance(group, Outcomes)]
    if len(parts) < len(groups):
        return value
    weights = []
    for part in parts:
        own = np.ones(len(part.values)) if part.weights is None else part.weights
        weights.append(own / own.sum())
    keys = [key for part in parts for key in part.keys]
    return Outcomes(value, np.concatenate([p.values for p in parts]), keys, np.concatenate(weights))


def part_of(outcomes: Outcomes, chosen: np.ndarray) -> Outcomes:
    """Returns the measure on some of its items, all counted alike."""
    values = np.asarray(outcomes.values)[chosen]
    keys = [key for key, is_chosen in zip(outcomes.keys, chosen, strict=True) if is_chosen]
    return Outcomes(float(values.mean()), values, keys)


@dataclass(frozen=True)
class Stored:
    """Outcomes as they are read from a file.

    Attributes:
        values: of each item, float64 [n].
        weights: how much each item counts, float64 [n].
        items: hash of the items' names in their order: two measures with the same one are of the
            same items.
    """

    values: np.ndarray
    weights: np.ndarray
    items: str


def write_outcomes(path: Path, outcomes: Mapping[str, Outcomes]) -> None:
    """Writes outcomes by the name of their measure."""
    arrays: dict[str, np.ndarray] = {}
    for name, each in outcomes.items():
        values = np.asarray(each.values)
        is_right_or_wrong = bool(np.isin(values, (0, 1)).all())
        arrays[f"{name}/values"] = values.astype(np.uint8 if is_right_or_wrong else np.float64)
        if each.weights is not None:
            arrays[f"{name}/weights"] = np.asarray(each.weights, dtype=np.float64)
        names = json.dumps([str(key) for key in each.keys])
        arrays[f"{name}/items"] = np.array(hashlib.sha256(names.encode()).hexdigest()[:16])
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_outcomes(path: Path) -> dict[str, Stored]:
    """Reads what `write_outcomes` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        names = [name.removesuffix("/values") for name in arrays if name.endswith("/values")]
        found = {}
        for name in names:
            values = arrays[f"{name}/values"].astype(np.float64)
            weights = f"{name}/weights"
            found[name] = Stored(
                values,
                arrays[weights] if weights in arrays else np.ones(len(values)),
                str(arrays[f"{name}/items"]),
            )
        return found
