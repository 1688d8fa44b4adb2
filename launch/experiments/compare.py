"""Intervals of one evaluation's measures, and their differences to those of a baseline.

In: outcomes of items, as evaluations store them. Out: 95% bootstrap intervals over items, and
paired differences with p-values. They say how much these very models' scores depend on the choice
of the test items, and nothing about another training: several seeds do (`counterpoint ablate`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...train.evaluation.outcomes import FILE, Stored, read_outcomes
from .ablation.statistics import (
    NUM_DRAWS,
    Interval,
    holm,
    interval,
    resampled_means,
    two_sided,
)

# Numbers that are drawn for a set of items: 10,000 resamplings of up to 5,000 items.
MAX_DRAWN = 50_000_000
MIN_DRAWS = 1000


@dataclass(frozen=True)
class Comparison:
    """A measure of a model less that of the baseline, on the same items.

    Attributes:
        ours: the measure.
        theirs: that of the baseline.
        interval: 95% bootstrap interval of the difference, over items.
        p: of no difference, corrected for the number of measures (Holm).
    """

    ours: float
    theirs: float
    interval: Interval
    p: float

    @property
    def difference(self) -> float:
        """The measure less the baseline's."""
        return self.ours - self.theirs


def intervals(outcomes: Mapping[str, Stored]) -> dict[str, Interval]:
    """Returns the interval of each measure with at least two items, all of them finite."""
    return {
        name: interval(draws[:, 0])
        for name, draws in _resampled({name: [each] for name, each in outcomes.items()}).items()
    }


def compare(ours: Mapping[str, Stored], theirs: Mapping[str, Stored]) -> dict[str, Comparison]:
    """Returns the comparison of each measure that both have on the same items."""
    pairs = {
        name: [each, theirs[name]]
        for name, each in ours.items()
        if name in theirs and each.items == theirs[name].items
    }
    # Of these very models, on other items: one run each tells nothing about another training.
    drawn = {name: draws[:, 0] - draws[:, 1] for name, draws in _resampled(pairs).items()}
    corrected = holm([two_sided(each) for each in drawn.values()])
    return {
        name: Comparison(_mean(pairs[name][0]), _mean(pairs[name][1]), interval(each), p)
        for (name, each), p in zip(drawn.items(), corrected, strict=True)
        if p is not None
    }


def baseline_outcomes(source: Path, suite: str) -> tuple[Path, dict[str, Stored]]:
    """Returns the newest outcomes of a run on a suite, and their file.

    Args:
        source: a run folder, or a file of outcomes (.npz).
        suite: name of the suite.

    Raises:
        ValueError: there are none.
    """
    files = [source] if source.is_file() else sorted((source / "evaluation").glob("*.npz"))
    if (source / FILE).is_file():
        files.insert(0, source / FILE)
    for file in reversed(files):
        try:
            outcomes = read_outcomes(file)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{file} holds no outcomes ({error})") from error
        if any(name.startswith(f"{suite}/") for name in outcomes):
            return file, outcomes
    raise ValueError(
        f"baseline: {source} has no outcomes on the suite '{suite}'; evaluate it first, with "
        f"counterpoint evaluate {source} --suite {suite}"
    )


def _resampled(groups: Mapping[str, list[Stored]]) -> dict[str, np.ndarray]:
    """Returns resampled means [draws, models] by measure; items are drawn once for equal ones."""
    together: dict[tuple[str, bytes], list[str]] = {}
    for name, each in groups.items():
        rows = np.stack([one.values for one in each])
        if rows.shape[1] > 1 and np.isfinite(rows).all():
            together.setdefault((each[0].items, each[0].weights.tobytes()), []).append(name)
    found: dict[str, np.ndarray] = {}
    for names in together.values():
        rows = np.concatenate([[one.values for one in groups[name]] for name in names])
        num_draws = min(NUM_DRAWS, max(MIN_DRAWS, MAX_DRAWN // rows.shape[1]))
        draws = resampled_means(rows, groups[names[0]][0].weights, num_draws)
        width = len(groups[names[0]])
        for i, name in enumerate(names):
            found[name] = draws[:, width * i : width * (i + 1)]
    return {name: found[name] for name in groups if name in found}


def _mean(stored: Stored) -> float:
    return float(stored.values @ stored.weights / stored.weights.sum())
