"""The data of runs and panels as JSON for the page's script.

Curves are thinned as in the static figures; equal step arrays are stored once.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .figures import thin
from .overview import Column
from .panels import Panel, drawn_first
from .runs import Run

NUM_POINTS = 400  # of a curve at most
NUM_POINTS_A_PANEL = 8_000


def embed(runs: list[Run], figures: dict[str, Panel], table: Sequence[Column]) -> str:
    """Returns JSON that is safe inside a `<script>`; figures by the names on the page."""
    steps: dict[tuple[float, ...], int] = {}
    drawn = {
        name: {
            "grain": panel.grain,
            "scale": panel.scale,
            "lines": [_line(line, len(panel.lines), steps) for line in panel.lines],
        }
        for name, panel in figures.items()
    }
    by_pairs = any(panel.x_label == "pairs seen" for panel in figures.values())
    content = {
        "axis": "pairs" if by_pairs else "step",
        "runs": [_run(run) for run in runs],
        "drawn": drawn_first(runs),
        "figures": drawn,
        "steps": [list(each) for each in steps],
        "columns": [
            {
                "title": column.title,
                "kind": column.kind,
                "share": column.share,
                "cells": column.cells,
                "values": [_rounded(value) for value in column.values],
            }
            for column in table
        ],
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    # In HTML nothing but `<` could end the element or open a comment.
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _line(line: Any, num_lines: int, steps: dict[tuple[float, ...], int]) -> dict[str, Any]:
    num_points = max(60, min(NUM_POINTS, NUM_POINTS_A_PANEL // num_lines))
    x, y = thin(line.steps, line.y, num_points)
    key = tuple(_all_rounded(x))
    return {
        "label": line.label,
        "run": line.run,
        "colour": line.colour,
        "steps": steps.setdefault(key, len(steps)),  # type: ignore[arg-type] - steps are finite
        "value": _all_rounded(y),
    }


def _run(run: Run) -> dict[str, Any]:
    """Returns the steps of a run with pairs, epochs and seconds at each."""
    rows = sorted({int(row["step"]): row for row in run.rows if "wall" in row}.items())
    if not rows:
        return {"name": run.name, "step": [0], "pairs": None, "epochs": None, "seconds": None}
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), NUM_POINTS)).astype(int))
    step = np.array([0, *(rows[i][0] for i in chosen)], dtype=float)
    seconds = [0.0, *(float(rows[i][1]["wall"]) for i in chosen)]
    pairs = run.samples_at(step)
    size = run.facts.get("epoch_size")
    return {
        "name": run.name,
        "step": _all_rounded(step),
        "pairs": None if pairs is None else _all_rounded(pairs),
        "epochs": _all_rounded(pairs / size) if size and pairs is not None else None,
        "seconds": _all_rounded(seconds),
    }


def _all_rounded(values: Iterable[float]) -> list[float | str | None]:
    return [_rounded(float(value)) for value in values]


def _rounded(value: float | str | None) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else float(f"{value:.6g}")
