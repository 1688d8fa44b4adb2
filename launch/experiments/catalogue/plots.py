"""The catalogue's drawings: accuracy against pairs seen and against compute, and a method's curves.

In: results. Out: SVG files by name. A run whose results keep its evaluations on the way is a curve
for each seed, another the point where it ended; the line through a point spans its seeds. Runs that
begin with trained weights are left out of the first two: the pairs before count, too.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape

from ...reporting.figures import brief
from ...reporting.runs import is_evaluation
from .drawing import LINE_HEIGHT, Axes, Panel, Series, legend, svg
from .records import Record, busy_seconds, value
from .tables import Results, Row, short
from .texts import Measure, Method, Plot
from .verdicts import AGREES, DISAGREES, UNCLEAR

LOOKS = {
    "the reference": ("diamond", "ink"),
    AGREES: ("circle", "blue"),
    DISAGREES: ("triangle", "orange"),
    UNCLEAR: ("square", "grey"),
    "other: see the table": ("ring", "grey"),
}
RUN_LOOKS = (
    *(("diamond", "ink"), ("circle", "blue"), ("triangle", "orange"), ("square", "green")),
    *(("ring", "purple"), ("cross", "grey")),
)
WIDTH, NAMES = 760.0, 210.0
TRAINED = ("init_from", "inherit_from")


def draw_all(found: Results) -> dict[str, str]:
    """Returns all drawings by the names of their files."""
    files = {}
    for plot in found.catalogue.plots:
        rows = list(_rows(found, plot))
        if rows:
            files[f"{plot.name}_pairs.svg"] = _overview(found, plot, rows, "pairs")
            files[f"{plot.name}_compute.svg"] = _overview(found, plot, rows, "compute")
    for method in found.catalogue.methods:
        if (drawing := _curves(found, method)) is not None:
            files[f"{method.stem}.svg"] = drawing
    return files


def _rows(found: Results, plot: Plot) -> Iterator[Row]:
    """Returns a row of each run of a plot's sweeps that begins with random weights."""
    seen = set()
    for row in found.rows:
        records = found.records[row.run]
        is_there = row.run.partition("/")[0] in plot.sweeps and row.run not in seen
        measured = all(value(found.first(row.run), record) is not None for record in records)
        if is_there and measured and not any(_begins_trained(record) for record in records):
            seen.add(row.run)
            yield row


def _begins_trained(record: Record) -> bool:
    return any(record["identity"]["values"].get(key) for key in TRAINED) or any(
        record["overrides"].get(key) for key in TRAINED
    )


def _overview(found: Results, plot: Plot, rows: Sequence[Row], against: str) -> str:
    measure = found.first(rows[0].run)
    series = [_series(found, row, measure, against, plot) for row in rows]
    height = max(300.0, LINE_HEIGHT * (len(rows) + 1))
    box = (52.0, 62.0, WIDTH - NAMES - 52.0, height)
    x = "pairs seen" if against == "pairs" else "processor time in minutes"
    axes = Axes(x, brief, _percent, log_x=True)
    title = f"{plot.title}: {measure.title[0].lower()}{measure.title[1:]}"
    panel = Panel(axes, series, box=box)
    head = f'<text class="t" x="12" y="22">{escape(title)}, against {x}</text>'
    used = {(each.shape, each.colour) for each in series}
    key = legend([(n, *look) for n, look in LOOKS.items() if look in used], 20.0, 44.0)
    return svg([head, key, panel.draw()], WIDTH, height + 112.0, f"{title}, against {x}")


def _series(found: Results, row: Row, measure: Measure, against: str, plot: Plot) -> Series:
    look = LOOKS["other: see the table"]
    if row.verdict is None or row.method.place == 0:
        look = LOOKS["the reference"]
    elif row.verdict.word in LOOKS:
        look = LOOKS[row.verdict.word]
    name = short(row.run) if row.run.startswith(f"{plot.sweeps[0]}/") else row.run
    records = found.records[row.run]
    ends = [(_spent(record, against), value(measure, record) or 0.0) for record in records]
    curves = [_history(record, measure, against) for record in records]
    return Series(name, ends, [c for c in curves if len(c) > 1], look[1], look[0])


def _spent(record: Record, against: str) -> float:
    return record["samples"] if against == "pairs" else busy_seconds(record) / 60


def _history(record: Record, measure: Measure, against: str) -> list[tuple[float, float]]:
    """Returns the evaluations on the way; compute grows as FLOPs do, where they were counted."""
    history = record.get("history") or {}
    if not all(metric in history for metric in measure.metrics):
        return []
    scores = [
        statistics.fmean(each) for each in zip(*map(history.get, measure.metrics), strict=True)
    ]
    done = history["samples"]
    if against == "compute":
        done = history.get("flops") or done
        done = [_spent(record, against) * each / done[-1] for each in done]
    return list(zip(done, scores, strict=True))


def _curves(found: Results, method: Method) -> str | None:
    """Returns a method's curves beside those it is compared with; None where none was kept."""
    # Each measure has axes of its own, and so has each sweep.
    measured: dict[tuple[str, Measure], dict[str, None]] = {}
    logged: dict[str, dict[str, None]] = {}
    for row in found.rows:
        measure = found.measure(row)
        if row.method is not method or measure is None:
            continue
        against = [row.verdict.claim.against] if row.verdict else []
        for run in (*against, row.run):
            records, sweep = found.records.get(run, []), run.partition("/")[0]
            if any(len(_history(record, measure, "pairs")) > 1 for record in records):
                measured.setdefault((sweep, measure), {})[run] = None
            if any(len(_losses(record)) > 1 for record in records):
                logged.setdefault(sweep, {})[run] = None
    runs = dict.fromkeys(run for names in (*measured.values(), *logged.values()) for run in names)
    looks = {run: RUN_LOOKS[i % len(RUN_LOOKS)] for i, run in enumerate(runs)}
    panels = [_accuracy(found, measure, names, looks) for (_, measure), names in measured.items()]
    panels += [_training(found, names, looks) for names in logged.values()]
    if not panels:
        return None
    parts, top = [], 34.0
    for panel in panels:
        height = max(170.0, LINE_HEIGHT * (len(panel.series) + 1))
        panel.box = (60.0, top, WIDTH - NAMES - 60.0, height)
        parts.append(panel.draw())
        top += height + 72.0
    return svg(parts, WIDTH, top - 28.0, f"{method.title}: curves over pairs seen")


def _accuracy(
    found: Results, measure: Measure, runs: Iterable[str], looks: Mapping[str, tuple[str, str]]
) -> Panel:
    series = []
    for run in runs:
        records = found.records[run]
        ends = [(r["samples"], value(measure, r) or 0.0) for r in records]
        curves = [_history(record, measure, "pairs") for record in records]
        series.append(Series(short(run), ends, curves, looks[run][1], looks[run][0]))
    is_share = is_evaluation(measure.metrics[0])
    show = _percent if is_share else brief
    return Panel(Axes("pairs seen", brief, show), series, title=measure.title)


def _training(found: Results, runs: Iterable[str], looks: Mapping[str, tuple[str, str]]) -> Panel:
    series = []
    for run in runs:
        curves = [curve for record in found.records[run] if (curve := _losses(record))]
        ends = [curve[-1] for curve in curves]
        series.append(Series(short(run), ends, curves, looks[run][1], looks[run][0]))
    axes = Axes("pairs seen", brief, brief, zero_y=False)
    return Panel(axes, series, title="Training loss, each of its own objective")


def _losses(record: Record) -> list[tuple[float, float]]:
    kept = record.get("training") or {}
    points = zip(kept.get("samples", ()), kept.get("loss", ()), strict=True)
    return [(x, y) for x, y in points if x is not None and y is not None]


def _percent(share: float) -> str:
    return f"{100 * share:g}%"
