"""Means over a run of what each row of metrics measured since the row before.

In: rows of `metrics.jsonl`. Out: throughput, utilisation and the like of the whole training time,
whatever number of steps a row covers and however often the run was resumed. Training time is that
of steps and of waiting for their data; evaluation, checkpoints and starts are not in it. Nothing is
imported: reports start without torch.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# By what the rows of each are weighted: parts of a time by time, parts of a pair by pairs.
WEIGHTED_BY = {
    "pairs_per_s": "seconds",
    "mfu": "seconds",
    "data_wait": "seconds",
    "flops_per_pair": "pairs",
    "hardware_flops_per_pair": "pairs",
}


def means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the mean of each rate that was logged, and `training_seconds`.

    Pairs whose rows are missing (a run was killed between two of them) count at the speed of the
    row after them. Empty where nothing was measured.
    """
    weights: dict[str, float] = dict.fromkeys(WEIGHTED_BY, 0.0)
    sums = dict(weights)
    training_seconds = 0.0
    for row, pairs in _intervals(rows):
        seconds = pairs / row["pairs_per_s"]
        training_seconds += seconds
        for name, unit in WEIGHTED_BY.items():
            value = row.get(name)
            if value is not None and math.isfinite(value):
                weight = seconds if unit == "seconds" else pairs
                weights[name] += weight
                sums[name] += weight * value
    if not training_seconds:
        return {}
    found = {name: sums[name] / weight for name, weight in weights.items() if weight}
    return {"training_seconds": training_seconds} | found


def short_steps(rows: Sequence[Mapping[str, Any]]) -> set[int]:
    """Steps of the rows that cover less than three quarters of the steps of the usual row.

    The last row of a run and the first one after a resume: their rates are of a few steps only.
    """
    steps = [row["step"] for row, _ in _intervals(rows)]
    covered = [b - a for a, b in zip([0, *steps], steps, strict=False)]
    if len(covered) < 2:
        return set()
    usual = statistics.median(covered)
    return {step for step, num in zip(steps, covered, strict=True) if 4 * num < 3 * usual}


def _intervals(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float]]:
    """Rows that measured speed, each with the pairs since the one before."""
    before = 0.0
    for row in rows:
        rate, samples = row.get("pairs_per_s"), row.get("samples")
        if rate and samples is not None and math.isfinite(rate) and samples > before:
            yield row, samples - before
            before = samples
