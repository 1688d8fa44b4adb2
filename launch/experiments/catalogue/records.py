"""Results by run: those of the newest configuration, their measures, and whether they collapsed."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...config.identity import Identity
from ..results import read_results
from .texts import Measure

Record = Mapping[str, Any]
# Norms of runs that learn are above 0.1; four runs ended with equal embeddings, at 7e-4 to 4e-8.
COLLAPSED_NORM = 1e-3


def read_groups(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads all results, by `SWEEP/RUN`, in the order of their seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in read_results(folder):
        groups.setdefault(f"{record['sweep']}/{record['run']}", []).append(record)
    return groups


def current(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of the configuration that was run last."""
    newest = max(records, key=lambda record: (record["date"], record["seed"]))
    trained = Identity.from_json(newest["identity"])
    return [r for r in records if trained.agrees(Identity.from_json(r["identity"]))]


def value(measure: Measure, record: Record) -> float | None:
    """Returns a measure of a run; None when it was not measured."""
    parts = [record["final"].get(metric) for metric in measure.metrics]
    return None if any(part is None for part in parts) else statistics.fmean(parts)


def values(measure: Measure, records: Sequence[Record]) -> list[float] | None:
    """Returns a measure of every run; None when one lacks it."""
    found = [value(measure, record) for record in records]
    return None if not found or None in found else [each for each in found if each is not None]


def has_collapsed(record: Record) -> bool:
    """Whether training ended with equal embeddings or no gradient: such a run is no comparison."""
    final = record["final"]
    # Older results do not say it themselves.
    return bool(final.get("collapsed", final.get("grad_norm", 1.0) < COLLAPSED_NORM))


def busy_seconds(record: Record) -> float:
    """Returns seconds of work: on a busy machine processor time is the better measure."""
    on_cpu = not record["machine"].get("accelerators")
    return (on_cpu and record.get("cpu_seconds")) or record["seconds"]
