"""The page of an evaluation: its table, curves and texts, and what lies between two models.

In: a suite's results as they are written. Out: one HTML file that needs no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...train.evaluation.measures import base_of, number, show, unit_of
from .figures import INK, MUTED, NUM_COLOURS, SERIES, brief, drawing, dress, svg_of
from .page import template

Figure = tuple[str, str, str]  # title, note, svg
DASHES = ("-", "--", ":", "-.")
NUM_BINS = 8  # of a mean over points


def has_page(record: Mapping[str, Any]) -> bool:
    """Whether there is more to show than the table on the terminal."""
    return bool(record.get("details") or record.get("line"))


def render_results(record: Mapping[str, Any], name: str) -> str:
    """Returns the page; nothing in it refers to another file or address.

    Args:
        record: of `SUITE-STEP.json`, or of a line between two models.
        name: of what was evaluated.
    """
    details: Mapping[str, Mapping[str, Any]] = record.get("details", {})
    curves = {key: each["curve"] for key, each in details.items() if each.get("curve")}
    return template("results.html").render(
        title=f"{record['suite']}: {name}",
        subtitle=_subtitle(record),
        rows=_rows(record),
        figures=[*map(_figure, curves, curves.values(), range(len(curves))), *_line(record)],
        texts={key: each["texts"] for key, each in details.items() if "texts" in each},
    )


def _subtitle(record: Mapping[str, Any]) -> str:
    if "line" in record:
        return f"from {record['start']} (0) to {record['end']} (1)"
    step = record.get("step")
    return str(record.get("model", "")) if step is None else f"step {step}, {record['weights']}"


def _rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Returns task, measure, value and interval of each result."""
    bounds = record.get("intervals", {})
    rows = []
    for name, value in record.get("metrics", {}).items():
        task, _, measure = name.rpartition("/")
        interval = ", ".join(number(measure, bound) for bound in bounds.get(name, ()))
        words = base_of(measure).replace("_", " ")
        rows.append((task.partition("/")[2], words, show(measure, value), interval))
    return rows


def _figure(name: str, curve: Mapping[str, Any], index: int) -> Figure:
    task, _, measure = name.partition("/")[2].rpartition("/")
    title, note = (
        f"{measure.replace('_', ' ')}: {task}",
        f"{curve['y_label']} by {curve['x_label']}",
    )
    prefix = f"curve{index}"
    with drawing((5.0, 3.4), (0.15, 0.15, 0.82, 0.82), prefix) as (figure, axes):
        _plot(axes, curve)
        axes.set_xlabel(curve["x_label"], color=MUTED, labelpad=3)
        axes.set_ylabel(curve["y_label"], color=MUTED, labelpad=3)
        dress(axes, "both")
        return title, note, svg_of(figure, prefix, f"{title}, {note}")


def _plot(axes: Any, curve: Mapping[str, Any]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    x, y = (np.asarray(curve[key], dtype=float) for key in ("x", "y"))
    sizes = np.asarray(curve["sizes"] or np.ones(len(x)), dtype=float)
    # Areas by the number of items: the eye weighs points as the measure does.
    areas = 10 + 60 * sizes / sizes.max(initial=1.0)
    if curve["kind"] == "logarithmic":
        axes.scatter(x, y, s=areas / 4, color=SERIES[0], alpha=0.45, linewidths=0)
        axes.plot(*_means(x, y), color=INK, linewidth=1.6)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0))
        return
    axes.plot(x, y, color=SERIES[0], linewidth=1.6)
    axes.scatter(x, y, s=areas, color=SERIES[0], linewidths=0)
    if curve["kind"] == "shares":
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, 0))
        return
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=bool(np.all(x == x.round()))))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: brief(value)))


def _means(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns means of points in groups of equal number, by rising x; of x, geometric ones."""
    order = np.argsort(x, kind="stable")
    groups = [part for part in np.array_split(order, NUM_BINS) if len(part)]
    means = [(np.exp(np.log(x[part]).mean()), y[part].mean()) for part in groups]
    return np.array([m for m, _ in means]), np.array([m for _, m in means])


def _line(record: Mapping[str, Any]) -> list[Figure]:
    """Returns a figure for each task and kind of measure, with a curve a measure over alpha."""
    points: Sequence[Mapping[str, Any]] = record.get("line", ())
    panels: dict[tuple[str, str, str], list[str]] = {}
    for name in points[0]["metrics"] if points else ():
        # Shares have one axis; of others a loss and its rise differ by orders of magnitude.
        unit = unit_of(name)
        kind = base_of(name.rpartition("/")[2]).rpartition("_")[2] if unit else ""
        panels.setdefault((name.rpartition("/")[0], unit, kind), []).append(name)
    drawn = []
    for index, ((task, unit, _), names) in enumerate(panels.items()):
        title = f"{task.partition('/')[2]} ({unit or '%'})"
        prefix = f"line{index}"
        with drawing((5.4, 3.2), (0.11, 0.15, 0.55, 0.82), prefix) as (figure, axes):
            for k, name in enumerate(names):
                values = [p["metrics"][name] * (1 if unit else 100) for p in points]
                axes.plot(
                    [p["alpha"] for p in points],
                    values,
                    color=SERIES[k % NUM_COLOURS],
                    linestyle=DASHES[k // NUM_COLOURS % len(DASHES)],
                    marker="o",
                    markersize=3.5,
                    linewidth=1.6,
                    label=base_of(name.rpartition("/")[2]).replace("_", " "),
                )
            axes.set_xlabel("alpha", color=MUTED, labelpad=3)
            axes.legend(
                loc="upper left",
                bbox_to_anchor=(1.02, 1.0),
                frameon=False,
                fontsize=7.5,
                labelcolor=INK,
                borderaxespad=0,
            )
            dress(axes, "both")
            drawn.append((title, "by alpha", svg_of(figure, prefix, title)))
    return drawn
