"""Columns of the table of many runs: results, and the settings in which they differ.

The table of many runs has a row a run; the scatter puts any number against any setting.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.identity import flatten
from .about import origin
from .panels import distinct_metrics, title_of
from .runs import Run, is_ranked, is_share, lower_is_better, show
from .tables import INCOMPARABLE, duration, text_of

# These differ in every run.
OWN = ("name", "run_dir")
FACTS = ("machine", "host", "precision", "parameters", "epoch_size", "code")
TRAINING = {
    "loss": "loss, last",
    "pairs_per_s": "pairs/s, mean",
    "mfu": "MFU, mean",
    "data_wait": "data wait, mean",
    "flops_per_pair": "FLOPs/pair, mean",
    "peak_memory_gib": "peak memory, GiB",
}


@dataclass(frozen=True)
class Column:
    """One number or word a run.

    Attributes:
        title: head of the column.
        kind: "result", "extent", "fact" or "setting".
        cells: one text a run.
        values: values to sort and draw by; None where a run has none.
        best: indices of the best runs.
        share: whether it is a fraction that is shown as a percentage.
    """

    title: str
    kind: str
    cells: list[str]
    values: list[float | str | None]
    best: frozenset[int] = frozenset()
    share: bool = False


def columns(runs: Sequence[Run]) -> tuple[list[Column], list[str]]:
    """Returns the columns in which runs differ, and `title value` of those in which none does."""
    candidates = [*_results(runs), *_extents(runs), *_facts(runs), *_settings(runs)]
    differing = [column for column in candidates if len(set(column.cells)) > 1]
    same = [
        f"{column.title} {column.cells[0]}"
        for column in candidates
        if len(set(column.cells)) == 1 and column.kind != "setting" and column.cells[0] != "-"
    ]
    return differing, same


def _results(runs: Sequence[Run]) -> Iterator[Column]:
    titles = {name: title_of(name) for name in distinct_metrics(list(runs))}
    for name, title in (titles | TRAINING).items():
        values = [_finite(run.means.get(name, run.final.get(name))) for run in runs]
        finite = [value for value in values if value is not None]
        best: frozenset[int] = frozenset()
        if finite and name not in (*INCOMPARABLE, "peak_memory_gib") and is_ranked(name):
            target = min(finite) if lower_is_better(name) else max(finite)
            best = frozenset(i for i, value in enumerate(values) if value == target)
        cells = [show(name, value) for value in values]
        yield Column(title, "result", cells, list(values), best, is_share(name))


def _extents(runs: Sequence[Run]) -> Iterator[Column]:
    counted: dict[str, tuple[Callable[[Run], float | None], Callable[[float], str]]] = {
        "steps": (lambda run: run.num_steps, "{:,.0f}".format),
        "pairs seen": (lambda run: run.num_samples, "{:,.0f}".format),
        "epochs": (lambda run: run.epochs, "{:.4g}".format),
        "time": (lambda run: run.seconds, duration),
        "left out": (_left_out, "{:,.0f}".format),
    }
    for title, (value_of, text) in counted.items():
        values = [value_of(run) for run in runs]
        cells = ["-" if value is None else text(value) for value in values]
        yield Column(title, "extent", cells, list(values))
    yield _words("state", "extent", ("ended" if run.summary else "not ended" for run in runs))


def _left_out(run: Run) -> float:
    """Returns the number of unusable samples."""
    return sum(value for name, value in run.final.items() if name.startswith("errors/"))


def _facts(runs: Sequence[Run]) -> Iterator[Column]:
    for row in origin(list(runs)):
        if row.name in FACTS:
            yield _words(row.title.lower(), "fact", row.cells)


def _settings(runs: Sequence[Run]) -> Iterator[Column]:
    leaves = [dict(flatten(run.config)) for run in runs]
    for key in dict.fromkeys(key for each in leaves for key in each):
        if key not in OWN:
            values = [_plain(each.get(key)) for each in leaves]
            cells = [text_of(each[key]) if key in each else "-" for each in leaves]
            yield Column(key, "setting", cells, values)


def _words(title: str, kind: str, cells: Iterable[str]) -> Column:
    texts = list(cells)
    return Column(title, kind, texts, [None if text == "-" else text for text in texts])


def _plain(value: Any) -> float | str | None:
    is_plain = value is None or (isinstance(value, str | int | float) and type(value) is not bool)
    return value if is_plain else text_of(value)


def _finite(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else value
