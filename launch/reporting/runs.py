"""Reads run folders as series and final numbers.

The run may still train, have been killed, or have ended: `summary.json` is optional, one older than
the last row (the run was continued) is ignored, and so is a cut-off last line of `metrics.jsonl` or
`starts.jsonl`.
"""

import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...train.evaluation import measures
from ..run.means import WEIGHTED_BY, means, short_steps

# What training logs under names of several parts; other such names are results of evaluations.
LOGGED = ("errors", "grad_clip", "guard", "loss", "loss_by_source", "samples", "tokens", "weight")


def is_evaluation(metric: str) -> bool:
    """Whether `metric` is `suite/task/measure` or `suite/task/group/measure`."""
    return metric.count("/") >= 2 and metric.split("/", 1)[0] not in LOGGED


def is_share(metric: str) -> bool:
    """Whether `metric` is a fraction from 0 to 1 that is shown as a percentage."""
    if is_evaluation(metric):
        return not measures.unit_of(metric)
    return metric in ("data_wait", "data_wait_max", "mfu")


def is_ranked(metric: str) -> bool:
    """Whether a value of `metric` can be better than another: not where it has a unit."""
    return not (is_evaluation(metric) and measures.unit_of(metric))


def lower_is_better(metric: str) -> bool:
    """Whether the smallest value of `metric` is the best."""
    if is_evaluation(metric):
        return measures.lower_is_better(metric)
    return metric in ("data_wait", "flops_per_pair")


def show(metric: str, value: float | None) -> str:
    """Returns `value` as text: percentages for shares, four digits for the rest."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "not finite"
    if is_evaluation(metric):
        return measures.show(metric, value)
    if is_share(metric):
        return f"{100 * value:.1f}%"
    if metric.endswith("flops_per_pair"):
        return f"{value / 1e9:.4g} G"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


@dataclass
class Run:
    """One run folder, read once."""

    name: str
    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    starts: list[dict[str, Any]] = field(default_factory=list)
    loggers: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def metrics(self) -> list[str]:
        """The logged metrics, in the order of first appearance."""
        names = dict.fromkeys(key for row in self.rows for key in row)
        return [name for name in names if name not in ("step", "wall")]

    @cached_property
    def means(self) -> dict[str, float]:
        """Means over the training time, such as of the throughput."""
        return means(self.rows)

    @property
    def facts(self) -> dict[str, Any]:
        """Machine, model and data at the last start, else those of `summary.json`."""
        return self.starts[-1] if self.starts else self.summary

    @property
    def epochs(self) -> float | None:
        """Passes over the data so far; None if its size is unknown."""
        size = self.facts.get("epoch_size")
        return self.num_samples / size if size else None

    @cached_property
    def final(self) -> dict[str, float]:
        """The last value of every metric; `summary.json` takes precedence."""
        last = {key: value for row in self.rows for key, value in row.items() if _number(value)}
        last.pop("step", None)
        last.pop("wall", None)
        stated = self.summary.get("final", {})
        return last | {key: value for key, value in stated.items() if _number(value)}

    @property
    def num_steps(self) -> int:
        """Steps done so far."""
        return int(self.summary.get("steps") or max((row["step"] for row in self.rows), default=0))

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        return self.summary.get("seconds") or max((r.get("wall", 0) for r in self.rows), default=0)

    @property
    def num_samples(self) -> int:
        """Pairs seen so far."""
        return int(self.summary.get("samples") or self.final.get("samples", 0))

    @cached_property
    def _short_steps(self) -> set[int]:
        return short_steps(self.rows)

    def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns (steps [n], values [n]) of one metric, rows without it left out.

        Rates of rows that cover few steps are left out, too: they would distort the curve.
        """
        pairs = [(row["step"], row[metric]) for row in self.rows if _number(row.get(metric))]
        if metric in WEIGHTED_BY:
            pairs = [(step, value) for step, value in pairs if step not in self._short_steps]
        steps, values = zip(*pairs, strict=True) if pairs else ((), ())
        return np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)

    def samples_at(self, steps: np.ndarray) -> np.ndarray | None:
        """Returns the pairs seen at `steps`, or None when the run did not log them."""
        logged, samples = self.series("samples")
        if not len(logged):
            return None
        rate = samples[-1] / logged[-1] if logged[-1] else 0.0
        return np.where(
            steps > logged[-1], steps * rate, np.interp(steps, np.r_[0, logged], np.r_[0, samples])
        )


def read_run(folder: str | Path) -> Run:
    """Reads one run folder.

    Raises:
        ValueError: there is no `metrics.jsonl`, or a line of it is not JSON.
    """
    folder = Path(folder)
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise ValueError(
            f"{folder} is no run folder: it has no metrics.jsonl; "
            "name the folder that `counterpoint fit` wrote"
        )
    rows = _read_rows(file)
    summary = _read_json(folder / "summary.json")
    ended = summary.get("steps", math.inf)
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config=_read_config(folder / "config.yaml"),
        rows=rows,
        summary={} if any(row["step"] > ended for row in rows) else summary,
        starts=_read_rows(folder / "starts.jsonl"),
        loggers=_read_json(folder / "loggers.json"),
    )


def read_runs(folders: list[str]) -> list[Run]:
    """Reads several folders; equal names get as much of the path as distinguishes them."""
    runs = [read_run(folder) for folder in folders]
    paths = [run.folder.resolve().parts for run in runs]
    if len(set(paths)) < len(paths):
        raise ValueError(f"a run is named twice in {' '.join(folders)}; name each run once")
    for run, parts in zip(runs, paths, strict=True):
        depth = 1
        while sum(other[-depth:] == parts[-depth:] for other in paths) > 1:
            depth += 1
        run.name = "/".join(parts[-depth:])
    return runs


def _read_rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if not file.is_file():
        return rows
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            # A kill while writing leaves half a line at the end; anywhere else it is damage.
            if number == len(lines) and not line.endswith("\n"):
                break
            raise ValueError(f"{file}, line {number} is not JSON; mend or remove it") from None
    return rows


def _read_config(file: Path) -> dict[str, Any]:
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
