"""The results of an ablation as one record: what `table.json` holds and the page shows.

In: a plan, its results and their outcomes, as many as there are. Out: plain JSON.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ....train.evaluation.outcomes import Stored
from ...reporting.panels import evaluation_metrics
from ...reporting.repeats import repeated
from ...reporting.runs import Run
from .plan import POOL, Plan, Subset
from .robustness import Line, fit_line, resampled_robustness
from .statistics import (
    NUM_DRAWS,
    Difference,
    Spread,
    difference_of_means,
    drawn_seeds,
    holm,
    interval,
    paired_difference,
    pooled_spread,
    resampled_means,
)

NEAR = 0.02  # an evaluation counts as one at so many samples within this share of them


@dataclass(frozen=True)
class Results:
    """What runs have left, by (run, seed).

    Attributes:
        records: of `Runner`.
        outcomes: of the last evaluation, by measure; a run may have none.
    """

    records: Mapping[tuple[str, int], Mapping[str, Any]]
    outcomes: Mapping[tuple[str, int], Mapping[str, Stored]]

    def seeds(self, run: str) -> list[int]:
        """Returns the seeds of which a run has a result."""
        return sorted(seed for name, seed in self.records if name == run)

    def values(self, run: str, metric: str, seeds: Sequence[int]) -> np.ndarray:
        """Returns a measure of each seed."""
        return np.array([self.records[run, seed]["final"][metric] for seed in seeds], dtype=float)


def make_table(plan: Plan, results: Results, num_draws: int = NUM_DRAWS) -> dict[str, Any]:
    """Returns the record.

    Raises:
        ValueError: an evaluation of the file was not measured, or runs on different items.
    """
    metrics, same, left_out = _metrics(results)
    named = {key: _find(metrics, name, key) for key, name in plan.evaluations.items()}
    first = list(dict.fromkeys(named.values()))
    metrics = [*first, *(metric for metric in metrics if metric not in first)]
    resampled = {metric: _Resampled(results, metric, num_draws) for metric in metrics}
    table = {
        "name": plan.name,
        "samples": plan.samples,
        "seeds": plan.seeds,
        "pool": plan.pool_size,
        "metrics": metrics,
        "same": same,
        "left_out": left_out,
        "in_distribution": named.get("in_distribution"),
        "shift": named.get("shift"),
        "draws": num_draws,
        "missing": sum(
            (s.name, seed) not in results.records for s in plan.subsets for seed in plan.seeds
        ),
        "rows": [_row(plan, subset, results, metrics) for subset in plan.subsets],
        "overlap": _overlap(plan.subsets),
        "comparisons": {metric: _comparisons(plan, resampled[metric]) for metric in metrics},
        "robustness": None,
    }
    if len(named) == 2:
        x, y = resampled[named["in_distribution"]], resampled[named["shift"]]
        table["robustness"] = _robustness(plan, x, y)
    return table


class _Resampled:
    """A measure of all runs, and its values under resampled items where outcomes are known."""

    def __init__(self, results: Results, metric: str, num_draws: int):
        self.results, self.metric, self.num_draws = results, metric, num_draws
        self.keys = [k for k, outcomes in results.outcomes.items() if metric in outcomes]
        self.stored = {key: results.outcomes[key][metric] for key in self.keys}
        kinds = {(s.items, s.weights.tobytes()) for s in self.stored.values()}
        if len(kinds) > 1:
            raise ValueError(
                f"{metric} was measured on different items in {self.keys[0][0]} and another run; "
                "the suite or its data have changed: remove the results of before"
            )
        self.draws: dict[tuple[str, int], np.ndarray] = {}
        if self.keys:
            some = self.stored[self.keys[0]]
            values = np.stack([self.stored[key].values for key in self.keys])
            # By the items: measures of the same items are resampled alike, others independently.
            drawn = resampled_means(values, some.weights, num_draws, int(some.items, 16))
            self.draws = dict(zip(self.keys, drawn.T, strict=True))
        self.spread = self._spread()

    def _spread(self) -> Spread | None:
        """Returns the spread between those seeds that all runs have."""
        runs = sorted({name for name, _ in self.results.records})
        seeds = set.intersection(*(set(self.results.seeds(run)) for run in runs))
        return pooled_spread(np.stack([self.values(run, sorted(seeds)) for run in runs]))

    def has(self, run: str, seeds: Sequence[int]) -> bool:
        return all((run, seed) in self.draws for seed in seeds)

    def values(self, run: str, seeds: Sequence[int]) -> np.ndarray:
        return self.results.values(run, self.metric, seeds)

    def outcomes(self, run: str, seeds: Sequence[int]) -> np.ndarray:
        return np.stack([self.stored[run, seed].values for seed in seeds])

    def drawn(self, run: str, seeds: Sequence[int]) -> np.ndarray:
        """Returns [draws, seeds]; without outcomes items stay as they are."""
        if self.has(run, seeds):
            return np.stack([self.draws[run, seed] for seed in seeds], axis=1)
        return np.broadcast_to(self.values(run, seeds), (self.num_draws, len(seeds)))

    def difference(self, ours: str, theirs: str) -> Difference | None:
        """Compares the seeds that both have; None: there are none."""
        seeds = sorted({*self.results.seeds(ours)} & {*self.results.seeds(theirs)})
        if not seeds:
            return None
        if not (self.has(ours, seeds) and self.has(theirs, seeds)):
            mine, other = self.values(ours, seeds), self.values(theirs, seeds)
            return difference_of_means(mine, other, self.spread)
        return paired_difference(
            self.outcomes(ours, seeds),
            self.outcomes(theirs, seeds),
            self.stored[ours, seeds[0]].weights,
            self.drawn(ours, seeds),
            self.drawn(theirs, seeds),
            self.spread,
        )


def _metrics(results: Results) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """Returns the measures that all runs have, each once, what repeats them by name, and others.

    Others: measures that some runs have, with the name of one that has no such number.
    """
    runs = [
        Run(f"{name}-{seed}", Path(), {}, [], {"final": dict(record["final"])})
        for (name, seed), record in results.records.items()
    ]
    found = evaluation_metrics(runs)
    lacks = {m: [run.name for run in runs if run.final.get(m) is None] for m in found}
    names = [m for m in found if not lacks[m]]
    same = repeated(runs, names)
    left_out = {m: without[0] for m, without in lacks.items() if without}
    return [name for name in names if name not in same], same, left_out


def _find(metrics: Sequence[str], name: str, key: str) -> str:
    for metric in metrics:
        if name == metric or metric.partition("/")[2] == name:
            return metric
    known = ", ".join(metric.partition("/")[2] for metric in metrics)
    raise ValueError(f"evaluate: {key} is {name}, which was not measured; there are {known}")


def _row(plan: Plan, subset: Subset, results: Results, metrics: Sequence[str]) -> dict[str, Any]:
    seeds = results.seeds(subset.name)
    records = [results.records[subset.name, seed] for seed in seeds]
    device = next((record.get("device") for record in records), None)
    spent = [_device_seconds(record) for record in records]
    evaluations = {}
    for metric in metrics if seeds else ():
        values = results.values(subset.name, metric, seeds)
        evaluations[metric] = {
            "mean": float(values.mean()),
            "std": float(values.std(ddof=1)) if len(values) > 1 else None,
            "seeds": dict(zip(map(str, seeds), values.tolist(), strict=True)),
        }
    return {
        "name": subset.name,
        "kind": subset.kind,
        "control": subset.control,
        "size": subset.size,
        "share": subset.size / plan.pool_size,
        "seeds": seeds,
        "epochs": _mean(record.get("epochs") for record in records),
        "seconds": _mean(record.get("seconds") for record in records),
        "device": device,
        "device_seconds": _mean(spent),
        "evaluations": evaluations,
    }


def _device_seconds(record: Mapping[str, Any]) -> float | None:
    """Returns seconds of all GPUs, or of the training process's cores."""
    if record.get("device") in (None, "cpu"):
        return record.get("cpu_seconds")
    return record["seconds"] * (record.get("world_size") or 1)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _overlap(subsets: Sequence[Subset]) -> dict[str, dict[str, dict[str, float]]]:
    """Returns Jaccard index, and the share of the one that the other has, between curations."""
    chosen = [(s.name, s.bits) for s in subsets if s.kind == "curation" and s.bits is not None]
    return {
        one: {
            other: {"jaccard": bits.jaccard(others), "share": bits.common(others) / bits.size}
            for other, others in chosen
        }
        for one, bits in chosen
    }


def _comparisons(plan: Plan, resampled: _Resampled) -> list[dict[str, Any]]:
    """Compares each curation with its random subset, and with the pool; corrects each family."""
    families: list[Callable[[Subset], str | None]] = [lambda s: s.control, lambda s: POOL]
    rows = []
    for number, against in enumerate(families):
        family = []
        for subset in plan.subsets:
            control = against(subset)
            if subset.kind != "curation" or control is None or (number and subset.control == POOL):
                continue
            if found := resampled.difference(subset.name, control):
                family.append({"run": subset.name, "against": control, **asdict(found)})
        corrected = holm([row["p"] for row in family])
        rows += [row | {"p_holm": p} for row, p in zip(family, corrected, strict=True)]
    return rows


def _robustness(plan: Plan, x: _Resampled, y: _Resampled) -> dict[str, Any]:
    """Fits the baseline's line, and measures every run against it."""
    results, points = x.results, []
    for subset in plan.subsets:
        if subset.kind == "curation":
            continue
        for seed in results.seeds(subset.name):
            drawn = [m.drawn(subset.name, [seed])[:, 0] for m in (x, y)]
            values = [float(m.values(subset.name, [seed])[0]) for m in (x, y)]
            points.append((f"{subset.name}", seed, *values, *drawn))
    for seed in results.seeds(POOL):
        for samples in plan.baseline:
            values = _on_the_way(results.records[POOL, seed], samples, (x.metric, y.metric))
            drawn = [np.broadcast_to(value, (x.num_draws,)) for value in values]
            points.append((f"{POOL}, {samples:,} samples", seed, *values, *drawn))
    line = fit_line(np.array([p[2] for p in points]), np.array([p[3] for p in points]))
    rows = [
        _robust_row(subset, line, points, x, y)
        for subset in plan.subsets
        if results.seeds(subset.name)
    ]
    shown = [dict(zip(("run", "seed", "x", "y"), point[:4], strict=True)) for point in points]
    return {"line": None if line is None else asdict(line), "points": shown, "rows": rows}


def _robust_row(
    subset: Subset, line: Line | None, points: list[tuple], x: _Resampled, y: _Resampled
) -> dict[str, Any]:
    seeds = x.results.seeds(subset.name)
    own_x, own_y = x.values(subset.name, seeds), y.values(subset.name, seeds)
    drop = own_x - own_y
    row: dict[str, Any] = {
        "run": subset.name,
        "drop": float(drop.mean()),
        "drop_std": float(drop.std(ddof=1)) if len(seeds) > 1 else None,
        "effective": None,
        "interval": None,
        "extrapolated": False,
    }
    if line is None or not ((own_x > 0) & (own_x < 1)).all():
        return row
    row["effective"] = float(line.effective(own_x, own_y).mean())
    row["extrapolated"] = not line.low <= float(own_x.mean()) <= line.high
    all_seeds = sorted({point[1] for point in points} | set(seeds))
    shares = drawn_seeds(len(all_seeds), x.num_draws)
    own_shares = shares[:, [all_seeds.index(seed) for seed in seeds]]
    with np.errstate(invalid="ignore", divide="ignore"):
        own_shares = own_shares / own_shares.sum(1, keepdims=True)
    drawn = resampled_robustness(
        (np.stack([p[4] for p in points], axis=1), np.stack([p[5] for p in points], axis=1)),
        shares[:, [all_seeds.index(point[1]) for point in points]],
        tuple((m.drawn(subset.name, seeds) * own_shares).sum(1) for m in (x, y)),
    )
    if np.isfinite(drawn).mean() > 0.5:
        row["interval"] = interval(drawn)
    return row


def _on_the_way(
    record: Mapping[str, Any], samples: int, metrics: tuple[str, str]
) -> tuple[float, ...]:
    """Returns the measures of the evaluation after so many samples."""
    history = record.get("history", {})
    at = [n for n in history.get("samples", []) if abs(n - samples) <= NEAR * samples]
    if not at:
        known = ", ".join(f"{n:,}" for n in history.get("samples", [])) or "none"
        raise ValueError(
            f"baseline: samples has {samples:,}, where the runs of the pool were not evaluated; "
            f"they were at {known} (evaluation.every_n_steps)"
        )
    place = history["samples"].index(min(at, key=lambda n: abs(n - samples)))
    return tuple(history[metric][place] for metric in metrics)
