"""Tables of the report: final numbers, sample errors, configuration."""

from dataclasses import dataclass
from typing import Any

from ..config.identity import flatten
from .panels import MANY, evaluation_metrics, title_of
from .repeats import repeated
from .runs import Run, is_ranked, lower_is_better, show

# Their meaning differs between objectives.
INCOMPARABLE = ("loss", "logit_scale")


@dataclass(frozen=True)
class Row:
    """One row: its name and title, one text a run, the indices of the best, a note."""

    name: str
    title: str
    cells: list[str]
    best: frozenset[int] = frozenset()
    note: str = ""


def final_numbers(runs: list[Run]) -> dict[str, list[Row]]:
    """Returns the rows of the results by section, without empty sections.

    Rates are means over the run: the last row may cover few steps, and is never compared.
    """
    training = [
        _row(runs, "loss", "Loss (last logged)"),
        _row(runs, "logit_scale", "Logit scale"),
        _mean_row(runs, "pairs_per_s", "Pairs per second, mean"),
        _last_row(runs, "pairs_per_s", "Pairs per second, last row"),
        _mean_row(runs, "flops_per_pair", "FLOPs per pair, mean"),
        _mean_row(runs, "mfu", "Utilisation (MFU), mean"),
        _last_row(runs, "mfu", "Utilisation (MFU), last row"),
        _mean_row(runs, "data_wait", "Waiting for data, mean"),
        _last_row(runs, "peak_memory_gib", "Peak memory, GiB"),
    ]
    epochs = ["-" if run.epochs is None else f"{run.epochs:.4g}" for run in runs]
    spent = [run.means.get("training_seconds") for run in runs]
    extent = [
        Row("steps", "Steps", [f"{run.num_steps:,}" for run in runs]),
        Row("samples", "Pairs seen", [f"{run.num_samples:,}" for run in runs]),
        Row("epochs", "Epochs", epochs),
        Row("seconds", "Time", [duration(run.seconds) for run in runs]),
        Row(
            "training_seconds", "of it training", ["-" if s is None else duration(s) for s in spent]
        ),
        Row("precision", "Precision", [str(precision_of(run)) for run in runs]),
        Row("state", "State", ["ended" if run.summary else "not ended" for run in runs]),
    ]
    sections = {
        "Evaluation": _evaluation_rows(runs),
        "Training": [row for row in training if any(cell != "-" for cell in row.cells)],
        "Extent": [row for row in extent if any(cell != "-" for cell in row.cells)],
    }
    return {title: rows for title, rows in sections.items() if rows}


def precision_of(run: Run) -> str:
    """Returns the precision of the run's towers; Lightning's default without a setting."""
    return (run.config.get("trainer") or {}).get("precision") or "32-true"


def error_counts(runs: list[Run]) -> list[Row]:
    """Returns one row per logged (cause, source), also for zero failures.

    Many runs give their sum; the table of runs has the single counts.
    """
    names = dict.fromkeys(
        name for run in runs for name in [*run.metrics, *run.final] if name.startswith("errors/")
    )
    rows = []
    for name in sorted(names):
        _, cause, *source = name.split("/")
        title = cause.replace("_", " ") + (f", source {'/'.join(source)}" if source else "")
        counts = [run.final.get(name) for run in runs]
        if len(runs) > MANY:
            counts = [sum(count for count in counts if count is not None)]
        rows.append(Row(name, title, ["-" if n is None else f"{n:,.0f}" for n in counts]))
    return rows


def configuration(runs: list[Run]) -> dict[str, list[Row]]:
    """Returns one row per configured leaf by slot; with several runs, `best` marks differences."""
    leaves = [dict(flatten(run.config)) for run in runs]
    slots: dict[str, list[Row]] = {}
    for key in dict.fromkeys(key for each in leaves for key in each):
        slot, _, rest = key.partition(".")
        cells = [text_of(each[key]) if key in each else "-" for each in leaves]
        differs = frozenset(range(len(runs))) if len(set(cells)) > 1 else frozenset()
        section = slot if rest else "run"
        slots.setdefault(section, []).append(Row(key, rest or slot, cells, differs))
    # Single values (seed, name) come first, then the slots in the order of the run file.
    return dict(sorted(slots.items(), key=lambda item: item[0] != "run"))


def chosen(runs: list[Run]) -> list[Row]:
    """Returns the leaves with another value than the default, or in which several runs differ.

    Empty if the run's folder, of an older version, lacks the chosen names.
    """
    rows = [row for rows in configuration(runs).values() for row in rows]
    if len(runs) > 1:
        return [Row(row.name, row.name, row.cells) for row in rows if row.best]
    names = set(runs[0].facts.get("chosen") or ())
    return [Row(row.name, row.name, row.cells) for row in rows if row.name in names]


def short_title(metric: str) -> str:
    """Returns a metric's short name without the suite: `heldout/top1`, `find/t2i@5`."""
    name = metric.partition("/")[2]
    return name.replace("text_to_image_recall", "t2i").replace("image_to_text_recall", "i2t")


def duration(seconds: float) -> str:
    """Returns a length of time in words: `58 s`, `9 min 12 s`, `3 h 05 min`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"


def _evaluation_rows(runs: list[Run]) -> list[Row]:
    metrics = evaluation_metrics(runs)
    again = repeated(runs, metrics)
    rows = []
    for metric in metrics:
        if metric not in again:
            same = [title_of(other) for other, first in again.items() if first == metric]
            note = f"the same: {'; '.join(same)}" if same else ""
            rows.append(_row(runs, metric, title_of(metric), note))
    return rows


def _row(runs: list[Run], metric: str, title: str, note: str = "") -> Row:
    return _compared(metric, title, [run.final.get(metric) for run in runs], note)


def _mean_row(runs: list[Run], metric: str, title: str) -> Row:
    return _compared(metric, title, [run.means.get(metric) for run in runs])


def _last_row(runs: list[Run], metric: str, title: str) -> Row:
    values = [run.final.get(metric) for run in runs]
    return Row(f"{metric}.last", title, [show(metric, value) for value in values])


def _compared(metric: str, title: str, values: list[float | None], note: str = "") -> Row:
    comparable = [value for value in values if value is not None and value == value]
    best: frozenset[int] = frozenset()
    if len(set(comparable)) > 1 and metric not in INCOMPARABLE and is_ranked(metric):
        target = min(comparable) if lower_is_better(metric) else max(comparable)
        best = frozenset(i for i, value in enumerate(values) if value == target)
    return Row(metric, title, [show(metric, value) for value in values], best, note)


def text_of(value: Any) -> str:
    """Returns a configured value as in the run file."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "empty"
    return str(value)
