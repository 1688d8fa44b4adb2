"""Rows of the catalogue's tables: comparisons and their verdicts, and where runs were measured."""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ....train.evaluation.measures import show_difference
from ...config.identity import PRECISION
from ...reporting.runs import show
from ...reporting.tables import duration
from .records import Record, busy_seconds, current, read_groups, value, values
from .texts import Catalogue, Measure, Method, read_catalogue
from .verdicts import UNSEEN, Verdict, judge

OVER_SEEDS_ONLY = "°"  # marks intervals that hold for these test items
MIXED = "≠"  # marks differences of runs in different precision


@dataclass(frozen=True)
class Row:
    """One line of a sweep's table: a run of a method, alone or beside another."""

    method: Method
    run: str
    verdict: Verdict | None = None


class Results:
    """The catalogue beside the current records of each of its runs."""

    def __init__(self, catalogue: Catalogue, records: Mapping[str, list[dict[str, Any]]]):
        self.catalogue, self.records = catalogue, records
        self.rows = [row for method in catalogue.methods for row in self._rows(method)]

    def _rows(self, method: Method) -> list[Row]:
        """Returns the rows of runs with a result: one a claim, or one of a run without.

        A run that others of its method are compared with stands beside them already.
        """
        rows = []
        baselines = {claim.against for claim in method.claims}
        for run in method.runs:
            claims = [claim for claim in method.claims if claim.run == run]
            if run in self.records:
                rows += [Row(method, run, self._judge(method, claim)) for claim in claims]
                rows += [] if claims or run in baselines else [Row(method, run)]
        return rows

    def _judge(self, method: Method, claim: Any) -> Verdict:
        ours, theirs = self.records.get(claim.run, []), self.records.get(claim.against, [])
        verdict = judge(claim, ours, theirs, self.choices(method, claim.run))
        pairs = [(a, b) for a in ours for b in theirs if a["seed"] == b["seed"]]
        return replace(verdict, mixed=any(_precision(a) != _precision(b) for a, b in pairs))

    def choices(self, method: Method, run: str) -> tuple[Measure, ...]:
        """What may be read of a run, in the order in which it is compared."""
        sweep = self.catalogue.sweep(run.partition("/")[0])
        return (*sweep.measures, *self.catalogue.columns, *method.measures)

    @property
    def missing(self) -> list[str]:
        """The runs of the catalogue without a result."""
        named = [run for method in self.catalogue.methods for run in method.runs]
        return sorted(run for run in set(named) if run not in self.records)

    def measure(self, row: Row) -> Measure | None:
        """The measure that a row shows: what was compared, else the first that the run has."""
        if row.verdict and row.verdict.measure:
            return row.verdict.measure
        choices = self.choices(row.method, row.run)
        return next((m for m in choices if values(m, self.records[row.run])), None)

    def measures(self, method: Method) -> list[Measure]:
        """All that one of a method's runs has been measured by."""
        found: dict[Measure, None] = {}
        for run in method.runs:
            records = self.records.get(run, [])
            found |= dict.fromkeys(m for m in self.choices(method, run) if values(m, records))
        return list(found)

    def cost(self, run: str) -> str:
        """Time for a pair relative to the sweep's reference; "" where there is none."""
        reference = self.catalogue.sweep(run.split("/")[0]).reference
        if reference not in self.records:
            return ""
        ours, one = (
            statistics.median(busy_seconds(r) / r["samples"] for r in self.records[each])
            for each in (run, reference)
        )
        return f"{ours / one:.2f}"

    def first(self, run: str) -> Measure:
        """The measure that a sweep's table shows where it names none."""
        sweep = self.catalogue.sweep(run.partition("/")[0])
        return (*sweep.measures, *self.catalogue.columns)[0]

    def cells(self, row: Row) -> list[str]:
        """Returns the cells of a row of a sweep's table."""
        records, measure = self.records[row.run], self.measure(row)
        link = f"[{row.method.title}](#{slug(row.method.title)})"
        compared = f"`{short(row.run)}`"
        baseline = difference = text = ""
        if row.verdict:
            verdict = row.verdict
            compared += f" against `{short(verdict.claim.against, row.run)}`"
            if verdict.difference and measure:
                baseline = spread(measure, self.records[verdict.claim.against])
                difference = show_verdict_difference(verdict)
            text = verdict.word if verdict.word == UNSEEN else verdict.text
        first = self.first(row.run)
        shown = measure if measure != first else None
        compared += f": {shown.title}" if shown else ""
        result = spread(measure, records) if measure else "-"
        cost = self.cost(row.run)
        return [link, compared, result, baseline, difference, text, cost, str(len(records))]


def read_all(folder: Path, results: Path) -> Results:
    """Reads a catalogue and the results of the newest configuration of each run."""
    groups = read_groups(results)
    return Results(read_catalogue(folder), {run: current(each) for run, each in groups.items()})


def show_verdict_difference(verdict: Verdict) -> str:
    """Returns a difference with its interval, with marks."""
    assert verdict.difference and verdict.measure
    name, found = verdict.measure.metrics[0], verdict.difference
    text = show_difference(name, found.value)
    mark = MIXED if verdict.mixed else ""
    if found.own_t is None:
        return text + mark
    low, high = (show_difference(name, bound) for bound in found.own_t)
    return f"{text} [{low}, {high}]{'' if found.num_items else OVER_SEEDS_ONLY}{mark}"


def spread(measure: Measure, records: Sequence[Record]) -> str:
    """Returns `mean ± std` over seeds; "-" where one was not measured."""
    found = values(measure, records)
    if found is None:
        return "-"
    mean = show(measure.metrics[0], statistics.fmean(found))
    if len(found) == 1:
        return mean
    number, space, unit = mean.partition(" ")
    deviation = show(measure.metrics[0], statistics.stdev(found)).partition(" ")[0]
    return f"{number} ± {deviation}{space}{unit}"


def by_seed(measure: Measure, records: Sequence[Record]) -> str:
    """Returns the mean over seeds with each seed's value behind it: `46.6% (46.0, 48.8, 45.1)`."""
    found = [value(measure, record) for record in records]
    known = [each for each in found if each is not None]
    if len(known) < len(found):
        return "-"
    name = measure.metrics[0]
    mean = show(name, statistics.fmean(known))
    if len(known) == 1:
        return mean
    numbers = [show(name, each).partition(" ")[0].removesuffix("%") for each in known]
    return f"{mean} ({', '.join(numbers)})"


def provenance(run: str, config: str, records: Sequence[Record]) -> list[str]:
    """Returns what a run was measured on: config, pairs seen, time, machine and so on."""
    samples = " or ".join(sorted({f"{record['samples']:,}" for record in records}))
    seconds = duration(statistics.fmean(busy_seconds(record) for record in records))
    machines = Counter(_machine(record["machine"]) for record in records)
    dates = sorted({record["date"][:10] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    codes = {_code(record["commit"]) for record in records}
    precisions = set(map(_precision, records))
    where = ["; ".join(sorted(machines)), ", ".join(sorted(precisions)), when]
    return [f"`{run}`", f"`{config}`", samples, seconds, "; ".join([*where, *sorted(codes)])]


def _precision(record: Record) -> str:
    return record["identity"]["values"].get(PRECISION) or "32-true"


def line(cells: Sequence[str]) -> str:
    """Returns a line of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numeric: int = 0) -> list[str]:
    """Returns a Markdown table; the columns from number `numeric` on are numbers, 0: none."""
    ruler = ["---:" if numeric and i >= numeric else "---" for i in range(len(head))]
    return [line(head), line(ruler), *map(line, rows)]


def short(run: str, beside: str = "") -> str:
    """Returns a run's name without its sweep, unless that is another than of `beside`."""
    sweep, _, name = run.partition("/")
    return run if beside and beside.partition("/")[0] != sweep else name


def slug(title: str) -> str:
    """Returns the anchor of a heading, as Markdown's toc extension makes it."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def _machine(machine: Mapping[str, Any]) -> str:
    accelerators = Counter(machine.get("accelerators") or [])
    extra = "".join(f" + {count} x {name}" for name, count in sorted(accelerators.items()))
    return f"{machine['cores']} cores, {machine['cpu']}{extra}"


def _code(commit: Mapping[str, Any]) -> str:
    revision = commit["revision"]
    return f"{revision[:8]}{' changed' if commit['dirty'] else ''}" if revision else "no commit"
