"""Finds metrics that repeat others, and constant curves.

With balanced classes the mean recall of classes is top-1, and over the same names R@1 is, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .runs import Run, show

TOLERANCE = 1e-6  # a mean over classes and one over samples differ by rounding
NUM_POINTS = 3  # fewer values may be equal by chance


@dataclass(frozen=True)
class Constant:
    """A metric that had one value in each run, as text."""

    name: str
    text: str


def repeated(runs: Sequence[Run], metrics: Sequence[str]) -> dict[str, str]:
    """Maps each metric that equals an earlier one in every row of every run to that one.

    With few rows, only a mean over a task's classes and one over its samples count as equal.
    """
    originals: dict[str, str] = {}
    distinct: list[str] = []
    for metric in metrics:
        original = next((other for other in distinct if _are_equal(runs, metric, other)), None)
        if original is None:
            distinct.append(metric)
        else:
            originals[metric] = original
    return originals


def constants(runs: Sequence[Run], metrics: Sequence[str]) -> list[Constant]:
    """Returns the metrics that did not change in any run, with their value.

    Metrics of fewer than three values in every run are left out.
    """
    flat = []
    for metric in metrics:
        series = [run.series(metric)[1] for run in runs]
        logged = [values for values in series if len(values)]
        if not logged or max(map(len, logged)) < NUM_POINTS:
            continue
        if all((values == values[0]).all() for values in logged):
            texts = [show(metric, float(values[0])) for values in logged]
            flat.append(Constant(metric, " / ".join(dict.fromkeys(texts))))
    return flat


def _are_equal(runs: Sequence[Run], metric: str, other: str) -> bool:
    num_points = 0
    for run in runs:
        steps, values = run.series(metric)
        other_steps, other_values = run.series(other)
        same_rows = np.array_equal(steps, other_steps)
        if not same_rows or (metric in run.final) != (other in run.final):
            return False
        ours = [*values, run.final.get(metric, 0.0)]
        theirs = [*other_values, run.final.get(other, 0.0)]
        if not np.allclose(ours, theirs, rtol=0, atol=TOLERANCE, equal_nan=True):
            return False
        num_points += len(np.unique(values))
    return num_points >= NUM_POINTS or _is_mean_of_classes(metric, other)


def _is_mean_of_classes(metric: str, other: str) -> bool:
    (task, measure), (other_task, _) = metric.rsplit("/", 1), other.rsplit("/", 1)
    return task == other_task and measure.startswith("mean_per_class")
