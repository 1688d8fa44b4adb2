"""Runs in, the page's tables out: final numbers, sample errors, configuration."""

from dataclasses import dataclass
from typing import Any

from .panels import evaluation_metrics, title_of
from .runs import Run, show

LOWER_IS_BETTER = ("data_wait", "flops_per_pair")
# Objectives differ in what their values mean.
INCOMPARABLE = ("loss", "logit_scale")


@dataclass(frozen=True)
class Row:
    """One row: what it is, one text a run, and the positions of the best ones."""

    name: str
    title: str
    cells: list[str]
    best: frozenset[int] = frozenset()


def final_numbers(runs: list[Run]) -> dict[str, list[Row]]:
    """Returns the rows of the table of results by section, sections without rows left out."""
    evaluation = evaluation_metrics(runs)
    training = [
        _row(runs, "loss", "Loss (last logged)"),
        _row(runs, "logit_scale", "Logit scale"),
        _row(runs, "pairs_per_s", "Pairs per second"),
        _row(runs, "flops_per_pair", "FLOPs per pair"),
        _row(runs, "mfu", "Utilisation (MFU)"),
        _row(runs, "data_wait", "Waiting for data"),
    ]
    extent = [
        Row("steps", "Steps", [f"{run.num_steps:,}" for run in runs]),
        Row("samples", "Pairs seen", [f"{run.num_samples:,}" for run in runs]),
        Row("seconds", "Time", [duration(run.seconds) for run in runs]),
        Row("precision", "Precision", [str(precision_of(run)) for run in runs]),
        Row("state", "State", ["ended" if run.summary else "not ended" for run in runs]),
    ]
    sections = {
        "Evaluation": [_row(runs, name, title_of(name)) for name in evaluation],
        "Training": [row for row in training if any(cell != "-" for cell in row.cells)],
        "Extent": extent,
    }
    return {title: rows for title, rows in sections.items() if rows}


def precision_of(run: Run) -> str:
    """Returns what the run's towers computed in; without a name it is Lightning's default."""
    return (run.config.get("trainer") or {}).get("precision") or "32-true"


def error_counts(runs: list[Run]) -> list[Row]:
    """Returns one row per (cause, source) that was logged, whether or not anything failed."""
    names = dict.fromkeys(
        name for run in runs for name in [*run.metrics, *run.final] if name.startswith("errors/")
    )
    rows = []
    for name in sorted(names):
        _, cause, *source = name.split("/")
        title = cause.replace("_", " ") + (f", source {'/'.join(source)}" if source else "")
        counts = [run.final.get(name) for run in runs]
        rows.append(Row(name, title, ["-" if n is None else f"{n:,.0f}" for n in counts]))
    return rows


def configuration(runs: list[Run]) -> dict[str, list[Row]]:
    """Returns one row per configured leaf by slot; with several runs, `best` marks differences."""
    leaves = [dict(_flatten(run.config)) for run in runs]
    slots: dict[str, list[Row]] = {}
    for key in dict.fromkeys(key for each in leaves for key in each):
        slot, _, rest = key.partition(".")
        cells = [_text(each[key]) if key in each else "-" for each in leaves]
        differs = frozenset(range(len(runs))) if len(set(cells)) > 1 else frozenset()
        section = slot if rest else "run"
        slots.setdefault(section, []).append(Row(key, rest or slot, cells, differs))
    # Single values (seed, name) come first, then the slots as the run file has them.
    return dict(sorted(slots.items(), key=lambda item: item[0] != "run"))


def duration(seconds: float) -> str:
    """Returns a length of time as people say it: `58 s`, `9 min 12 s`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _row(runs: list[Run], metric: str, title: str) -> Row:
    values = [run.final.get(metric) for run in runs]
    known = [value for value in values if value is not None and value == value]
    best: frozenset[int] = frozenset()
    if len(set(known)) > 1 and metric not in INCOMPARABLE:
        target = min(known) if metric in LOWER_IS_BETTER else max(known)
        best = frozenset(i for i, value in enumerate(values) if value == target)
    return Row(metric, title, [show(metric, value) for value in values], best)


def _flatten(tree: dict[str, Any], prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "empty"
    return str(value)
