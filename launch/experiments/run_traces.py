"""What a result keeps of its run's folder beside the final metrics.

In: a run's folder. Out: plain JSON: `history`, the evaluations on the way; `training`, loss and
gradient norm, thinned; `outcomes`, which items of the last evaluation were right, as bits. Two
results with outcomes can be compared item for item long after their runs are gone.
"""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...train.evaluation.outcomes import FILE, Stored, read_outcomes
from ..reporting.figures import thin
from ..reporting.runs import Run, is_evaluation, read_run

NUM_POINTS = 30  # of a training curve
NUM_DIGITS = 5
TRAINING = ("loss", "grad_norm", "logit_scale", "mean_cosine", "spread")  # and what is below them


def keep_traces(run_dir: Path, file: Path) -> dict[str, Any]:
    """Returns `history`, `training` and `outcomes` of a finished run, as many as there are."""
    if not (run_dir / "metrics.jsonl").is_file():
        return {}
    run = read_run(run_dir)
    found: dict[str, Any] = {"history": history(run), "training": training(run)}
    if (run_dir / FILE).is_file():
        found["outcomes"] = pack(read_outcomes(run_dir / FILE))
    return {name: each for name, each in found.items() if each}


def history(run: Run) -> dict[str, list[float]]:
    """Returns pairs seen, FLOPs so far and every measure, at each evaluation of the whole suite."""
    metrics = [metric for metric in run.metrics if is_evaluation(metric)]
    rows = [row for row in run.rows if all(metric in row for metric in metrics)] if metrics else []
    steps = np.array([row["step"] for row in rows], dtype=float)
    samples = run.samples_at(steps)
    if samples is None or not rows:
        return {}
    found: dict[str, list[float]] = {"samples": [round(n) for n in samples]}
    if (flops := _flops_at(run, steps)) is not None:
        found["flops"] = [_short(n) for n in flops]
    return found | {metric: [row[metric] for row in rows] for metric in metrics}


def training(run: Run) -> dict[str, list[float | None]]:
    """Returns pairs seen, and losses, gradient norm and scale there, in at most 30 points."""
    names = [name for name in run.metrics if name.partition("/")[0] in TRAINING]
    rows = [row for row in run.rows if "loss" in row]
    samples = run.samples_at(np.array([row["step"] for row in rows], dtype=float))
    if samples is None or not rows:
        return {}
    found: dict[str, list[float | None]] = {}
    for name in ("samples", *names):
        y = samples if name == "samples" else np.array([_number(row.get(name)) for row in rows])
        _, means = thin(samples, y, NUM_POINTS)
        found[name] = [_short(value) if np.isfinite(value) else None for value in means]
    return found


def pack(outcomes: Mapping[str, Stored]) -> dict[str, dict[str, Any]]:
    """Returns the measures whose items are right or wrong, as text; equal ones once, by name.

    Groups of fewer than half of a task's items (one of many languages) are left out.
    """
    packed: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for name, each in outcomes.items():
        if not np.isin(each.values, (0, 1)).all() or _is_small_group(name, outcomes):
            continue
        entry = {"items": each.items, "num": len(each.values)}
        entry["right"] = _encode(np.packbits(each.values.astype(bool)))
        if np.ptp(each.weights) > 0:
            entry["weights"] = _encode(each.weights)
        first = names.setdefault(repr(entry), name)
        packed[name] = entry if first == name else {"as": first}
    return packed


def unpack(record: Mapping[str, Any]) -> dict[str, Stored]:
    """Returns the outcomes of a result; none where it has not kept any."""
    packed = record.get("outcomes") or {}
    found = {}
    for name, entry in packed.items():
        entry = packed[entry["as"]] if "as" in entry else entry
        bits = np.unpackbits(_decode(entry["right"], np.uint8), count=entry["num"])
        weights = (
            _decode(entry["weights"], np.float64) if "weights" in entry else np.ones(len(bits))
        )
        found[name] = Stored(bits.astype(np.float64), weights, entry["items"])
    return found


def _is_small_group(name: str, outcomes: Mapping[str, Stored]) -> bool:
    suite, task, measure = name.split("/", 2) if name.count("/") > 1 else ("", name, "")
    parts = task.split("_")
    wholes = (f"{suite}/{'_'.join(parts[:i])}/{measure}" for i in range(1, len(parts)))
    size = len(outcomes[name].values)
    return any(2 * size < len(outcomes[whole].values) for whole in wholes if whole in outcomes)


def _flops_at(run: Run, steps: np.ndarray) -> np.ndarray | None:
    """Returns the towers' FLOPs up to each step; None where they were not counted."""
    logged, rates = run.series("flops_per_pair")
    samples = run.samples_at(logged)
    at = run.samples_at(steps)
    if samples is None or at is None or not len(logged):
        return None
    done = np.cumsum(rates * np.diff(samples, prepend=0.0))
    return np.interp(at, np.r_[0.0, samples], np.r_[0.0, done])


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else np.nan


def _short(value: float) -> float:
    return float(f"{value:.{NUM_DIGITS}g}")


def _encode(values: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _decode(text: str, kind: type) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)
