"""The page of an ablation: its tables, and three figures.

In: the record of `table.json`. Out: one HTML file that needs no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...train.evaluation.measures import unit_of
from .ablation_sections import BETTER, WORSE, has_seeds, mark, sections, summary
from .figures import INK, MUTED, SERIES, brief, drawing, dress, svg_of
from .page import template
from .panels import title_of

COLOURS = {"pool": INK, "random": MUTED, "curation": SERIES[0]}
MARKED = {BETTER: SERIES[2], WORSE: SERIES[1], "": SERIES[0]}
ROW_INCHES = 0.26


def render_page(table: Mapping[str, Any]) -> str:
    """Returns the page; nothing in it refers to another file or address."""
    return template("ablation.html").render(
        title=f"Ablation {table['name']}",
        subtitle=summary(table),
        figures=draw_figures(table),
        sections=sections(table),
    )


def draw_figures(table: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Returns (title, note, svg) of each figure."""
    shown = table["metrics"][:2] if table["in_distribution"] else table["metrics"][:1]
    drawn = []
    for number, metric in enumerate(shown):
        rows = table["comparisons"][metric]
        rows = [row for row in rows if row["against"] == _control(table, row["run"])]
        if rows:
            title, name = f"Differences: {title_of(metric)}", f"differences{number}"
            over = "" if has_seeds(table) else ", over test items alone"
            note = f"{metric}, against the control, with 95% intervals{over}"
            height = 0.75 + ROW_INCHES * len(rows)
            frame = (0.3, 0.5 / height, 0.66, 1 - 0.6 / height)
            with drawing((5.4, height), frame, name) as (figure, axes):
                _differences(axes, rows, metric)
                drawn.append((title, note, svg_of(figure, name, title)))
        title, name = f"Size: {title_of(metric)}", f"sizes{number}"
        bars = "; bars are the standard deviation between seeds" if has_seeds(table) else ""
        note = f"by the size of the subset{bars}"
        with drawing((5.4, 3.4), (0.11, 0.13, 0.65, 0.84), name) as (figure, axes):
            _sizes(axes, table, metric)
            drawn.append((title, note, svg_of(figure, name, title)))
    if table["robustness"]:
        title = "Accuracy under the shift, by accuracy in distribution"
        note = (
            f"{table['shift']} by {table['in_distribution']}, axes in logits: a small point a run, "
            "a large one the mean of a curation"
        )
        with drawing((5.4, 3.8), (0.12, 0.12, 0.64, 0.85), "robustness") as (figure, axes):
            _robustness(axes, table)
            drawn.append((title, note, svg_of(figure, "robustness", title)))
    return drawn


def _control(table: Mapping[str, Any], run: str) -> str | None:
    return next(row["control"] for row in table["rows"] if row["name"] == run)


def _differences(axes: Any, rows: Sequence[Mapping[str, Any]], metric: str) -> None:
    unit, scale = unit_of(metric), _scale(metric)
    axes.axvline(0, color=MUTED, linewidth=1)
    ordered = sorted(rows, key=lambda row: row["value"])
    for place, row in enumerate(ordered):
        colour = MARKED[mark(row, metric)]
        bounds = row["t"] or row["over_items"]
        if bounds:
            axes.plot([scale * b for b in bounds], [place, place], color=colour, linewidth=2)
        axes.plot([scale * row["value"]], [place], "o", color=colour, markersize=6)
    axes.set_yticks(range(len(ordered)), [row["run"] for row in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.set_xlabel(unit or "points", color=MUTED, labelpad=2)
    dress(axes, "x")


def _sizes(axes: Any, table: Mapping[str, Any], metric: str) -> None:
    from matplotlib.ticker import FuncFormatter

    places, percent = [], "" if unit_of(metric) else "%"
    for row in table["rows"]:
        if metric in row["evaluations"]:
            found = row["evaluations"][metric]
            colour, y = COLOURS[row["kind"]], _scale(metric) * found["mean"]
            spread = _scale(metric) * (found["std"] or 0.0)
            axes.errorbar(
                row["size"], y, spread, fmt="o", color=colour, markersize=5, elinewidth=1.4
            )
            places.append((row["size"], y, row["name"] if row["kind"] != "random" else ""))
    axes.set_xlim(0, 1.04 * max(x for x, _, _ in places))
    _name(axes, places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}{percent}"))
    axes.set_xlabel("samples in the subset", color=MUTED, labelpad=2)
    dress(axes, "both")


def _scale(metric: str) -> float:
    return 1.0 if unit_of(metric) else 100.0


def _robustness(axes: Any, table: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    found, places = table["robustness"], []
    points: list[tuple[float, float]] = []

    def plot(x: float, y: float, colour: str) -> None:
        if 0 < x < 1 and 0 < y < 1:
            points.append((x, y))
            axes.plot(_logit(x), _logit(y), "o", color=colour, markersize=3.5, alpha=0.7)

    for point in found["points"]:
        plot(point["x"], point["y"], MUTED)
    for row in table["rows"]:
        if row["kind"] == "curation" and row["evaluations"]:
            x, y = (row["evaluations"][table[key]] for key in ("in_distribution", "shift"))
            if not (0 < x["mean"] < 1 and 0 < y["mean"] < 1):
                continue
            for seed in x["seeds"]:
                plot(x["seeds"][seed], y["seeds"][seed], COLOURS["curation"])
            places.append((_logit(x["mean"]), _logit(y["mean"]), row["name"]))
            axes.plot(*places[-1][:2], "o", color=COLOURS["curation"], markersize=7)
    if found["line"] and points:
        x = _logit(np.array([min(points)[0], max(points)[0]]))
        axes.plot(x, found["line"]["slope"] * x + found["line"]["intercept"], color=MUTED)
    _name(axes, places)
    for axis, index in ((axes.xaxis, 0), (axes.yaxis, 1)):
        values = [point[index] for point in points]
        ticks = _shares(min(values), max(values)) if values else []
        axis.set_major_locator(FixedLocator([_logit(tick) for tick in ticks]))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{brief(round(100 / (1 + np.exp(-value)), 6))}%")
        )
    axes.set_xlabel("in distribution", color=MUTED, labelpad=2)
    dress(axes, "both")


def _shares(low: float, high: float) -> list[float]:
    """Returns round accuracies that span a range, six at most."""
    for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        ticks = np.arange(np.floor(low / step), np.ceil(high / step) + 1) * step
        ticks = ticks[(ticks > 0) & (ticks < 1)]
        if len(ticks) <= 6:
            return ticks.tolist()
    return [0.5]


def _name(axes: Any, places: Sequence[tuple[float, float, str]]) -> None:
    """Writes names at the right edge, in the order of the points, with lines to them."""
    low, high = axes.get_ylim()
    edge, named = axes.get_xlim()[1], sorted((y, x, name) for x, y, name in places if name)
    gap = 0.052 * (high - low)
    # Apart by `gap`, as near to the points' own heights as the figure's top allows.
    heights: list[float] = []
    for y, _, _ in named:
        heights.append(max(y, heights[-1] + gap) if heights else y)
    excess = max(0.0, heights[-1] - high) if heights else 0.0
    for (y, x, name), height in zip(named, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            (edge, height - excess),
            fontsize=8,
            va="center",
            color=INK,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.5, "alpha": 0.6},
        )


def _logit(p: Any) -> Any:
    return np.log(p) - np.log1p(-np.asarray(p))
