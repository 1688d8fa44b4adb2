"""The tables of an ablation as text: one form for Markdown, the page shows the same.

In: the record of `table.json`. Out: sections of a title, notes, a head and rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...train.evaluation.measures import lower_is_better, show, show_difference
from .panels import title_of
from .tables import duration, short_title

LEVEL = 0.05
BETTER, WORSE = "better", "worse"
COVERS = (
    "How to read the comparisons. 95% interval and p cover another training (seed of the "
    "initialisation and order, draw of the random subset) and other test items: a t test, in which "
    "the spread between seeds is that of all subsets together. p, corrected: for the number of "
    "curations in a table (Holm); a difference is marked where it is below 5%. Own spread: the "
    "same test with the seeds of the two subsets alone, should others spread otherwise. "
    "Bootstrap: 95% of {draws:,} resamplings of seeds and items; with few seeds it is too short "
    "where seeds differ much, and too long where they do not. Items only: these very models on "
    "other items, nothing about another training. All in points of a percentage."
)
ONE_SEED = (
    "One seed: how far another training would differ is not known, so there is no p, and nothing "
    "is marked. Items only: 95% of {draws:,} resamplings of the test items, for these very models. "
    "In points of a percentage."
)


@dataclass
class Section:
    """One table.

    Attributes:
        title: above it.
        notes: paragraphs before it.
        head: titles of the columns.
        rows: a text a column.
        marks: by row, whether its difference is significant: `better`, `worse` or nothing.
    """

    title: str
    notes: list[str]
    head: list[str]
    rows: list[list[str]]
    marks: list[str] = field(default_factory=list)


def sections(table: Mapping[str, Any]) -> list[Section]:
    """Returns the tables, the most important first."""
    found = [_in_short(table), _subsets(table)]
    compared = [section for metric in table["metrics"] for section in _against(table, metric)]
    if compared:
        text = COVERS if has_seeds(table) else ONE_SEED
        compared[0].notes.insert(0, text.format(**table))
    found += compared
    if table["robustness"]:
        found.append(_robustness(table))
    if len(table["overlap"]) > 1:
        found.append(_overlap(table["overlap"]))
    return found


def summary(table: Mapping[str, Any]) -> str:
    """Returns what is compared, in a line."""
    seeds = ", ".join(map(str, table["seeds"]))
    text = (
        f"{table['pool']:,} samples in the pool; every run sees {table['samples']:,}; "
        f"seed{'s' if len(table['seeds']) > 1 else ''} {seeds}"
    )
    return f"{text}; runs without a result: {table['missing']}" if table["missing"] else text


def has_seeds(table: Mapping[str, Any]) -> bool:
    """Returns whether any subset was trained with more than one seed."""
    return any(len(row["seeds"]) > 1 for row in table["rows"])


def render_markdown(table: Mapping[str, Any]) -> str:
    """Returns `table.md`."""
    lines = [f"# {table['name']}", "", f"{summary(table)}."]
    for section in sections(table):
        lines += ["", f"## {section.title}"]
        for note in section.notes:
            lines += ["", note]
        lines += ["", _line(section.head), _line(["---", *["---:"] * (len(section.head) - 1)])]
        for i, row in enumerate(section.rows):
            is_marked = i < len(section.marks) and section.marks[i]
            cells = [f"**{c}**" if is_marked and k == 2 else c for k, c in enumerate(row)]
            lines.append(_line(cells))
    return "\n".join(lines) + "\n"


def _in_short(table: Mapping[str, Any]) -> Section:
    shown = table["metrics"][: 2 if table["in_distribution"] else 1]
    robust = table["robustness"]["rows"] if table["robustness"] else []
    effective = {row["run"]: _effective(row, table) for row in robust}
    has_line = any(row["effective"] is not None for row in robust)
    rows = []
    for row in table["rows"]:
        cells = [row["name"], f"{row['size']:,}", row["control"] or "-"]
        for metric in shown:
            cells.append(_spread(row["evaluations"].get(metric), metric))
            pairs = [(each["run"], each["against"]) for each in table["comparisons"][metric]]
            pair = (row["name"], row["control"])
            found = table["comparisons"][metric][pairs.index(pair)] if pair in pairs else None
            cells.append("-" if found is None else _difference(found, metric))
        if has_line:
            cells.append(effective.get(row["name"], "-"))
        rows.append(cells)
    head = ["Subset", "Samples", "Control"]
    head += [title for metric in shown for title in (short_title(metric), "Difference")]
    note = "Differences are those to the control, in points; "
    if has_seeds(table):
        note += (
            "in brackets p, corrected for the number of curations. What both mean is said below."
        )
    else:
        note += "of one seed, which cannot tell them from luck in training."
    if any(row["extrapolated"] for row in robust):
        note += " A star: beyond the accuracies of the baseline, so extrapolated."
    notes = [note]
    return Section("In short", notes, [*head, *["Effective robustness"] * has_line], rows)


def _difference(row: Mapping[str, Any], metric: str) -> str:
    p, value = _p(row["p_holm"]), points(row["value"], metric)
    return f"{value} ({p})" if p != "-" else value


def _subsets(table: Mapping[str, Any]) -> Section:
    metrics, rows = table["metrics"], []
    devices = {row["device"] for row in table["rows"] if row["device"]}
    unit = "CPU time" if devices <= {"cpu"} else "GPU time"
    for row in table["rows"]:
        cells = [row["name"], f"{row['size']:,}", f"{row['share']:.1%}"]
        cells.append("-" if row["epochs"] is None else f"{row['epochs']:.1f}")
        cells += [_time(row["device_seconds"]), str(len(row["seeds"]))]
        cells += [_spread(row["evaluations"].get(metric), metric) for metric in metrics]
        rows.append(cells)
    head = ["Subset", "Samples", "Share", "Epochs", unit, "Seeds"]
    of = "means over seeds, with the standard deviation between seeds"
    notes = [
        f"Percentages are {of if has_seeds(table) else 'of one run each'}. Epochs: how often a run "
        f"sees its subset. {unit}: of one run."
    ]
    if table["same"]:
        same = [f"{short_title(a)} = {short_title(b)}" for a, b in table["same"].items()]
        notes.append(f"The same in all runs, and shown once: {', '.join(same)}.")
    if table["left_out"]:
        lacking = [f"{short_title(m)} ({run})" for m, run in table["left_out"].items()]
        notes.append(f"Left out, as a run has no such number: {', '.join(lacking)}.")
    return Section("Subsets", notes, [*head, *map(short_title, metrics)], rows)


def _against(table: Mapping[str, Any], metric: str) -> list[Section]:
    found = table["comparisons"][metric]
    controls = {row["name"]: row["control"] for row in table["rows"]}
    against_random = [row for row in found if controls[row["run"]] == row["against"]]
    against_pool = [row for row in found if controls[row["run"]] != row["against"]]
    made = []
    if against_random:
        title = f"{title_of(metric)}, against random subsets of equal size"
        if all(row["against"] == table["rows"][0]["name"] for row in against_random):
            title = f"{title_of(metric)}, against the pool"
        made.append(_comparison(title, metric, against_random))
    if against_pool:
        title = f"{title_of(metric)}, against the pool"
        made.append(_comparison(title, metric, against_pool))
    return made


def _comparison(title: str, metric: str, found: Sequence[Mapping[str, Any]]) -> Section:
    has_items = any(row["num_items"] for row in found)
    several = any(row["num_seeds"] > 1 for row in found)
    head = ["Subset", "Against", "Difference"]
    head += ["95% interval", "p", "p, corrected", "Own spread"] * several
    head += ["Bootstrap"] * (several and has_items) + ["Items only"] * has_items
    head += ["Seeds", "Items"]
    rows = []
    for row in found:
        cells = [row["run"], row["against"], points(row["value"], metric)]
        if several:
            cells += [_interval(row["t"], metric), _p(row["p"]), _p(row["p_holm"])]
            cells += [_interval(row["own_t"], metric)]
            cells += [_interval(row["bootstrap"], metric)] * has_items
        cells += [_interval(row["over_items"], metric)] * has_items
        cells += [str(row["num_seeds"]), f"{row['num_items']:,}" if row["num_items"] else "-"]
        rows.append(cells)
    notes = [f"`{metric}`"]
    if not has_items:
        covered = ", so intervals cover seeds alone" if several else ""
        notes.append(f"Outcomes of single items are not known{covered}.")
    return Section(title, notes, head, rows, [mark(row, metric) for row in found])


def mark(row: Mapping[str, Any], metric: str) -> str:
    """Returns `better` or `worse` where a difference between trainings is significant.

    Of a measure with a unit, where neither is known, `better` is more.
    """
    if row["num_seeds"] < 2 or row["p_holm"] is None or row["p_holm"] >= LEVEL:
        return ""
    return BETTER if (row["value"] > 0) != lower_is_better(metric) else WORSE


def _robustness(table: Mapping[str, Any]) -> Section:
    found = table["robustness"]
    line = found["line"]
    notes = [
        f"`{table['shift']}` beyond what `{table['in_distribution']}` predicts, in points (Taori "
        "et al. 2020). Drop: the plain difference of the two, as CounterAnimal reports it."
    ]
    if line is None:
        notes.append(
            "There is no line: it takes three baseline runs (the pool and random subsets) that "
            "differ in accuracy, none at 0 or 100%."
        )
    else:
        fit = "" if line["r2"] is None else f", R² {line['r2']:.2f}"
        drawn = "seeds and items" if has_seeds(table) else "items (there is one seed)"
        left_out = f", {line['left_out']} at 0 or 100% left out" if line["left_out"] else ""
        notes.append(
            f"Baseline: logit(shift) = {line['slope']:.2f} logit(in distribution) "
            f"{line['intercept']:+.2f}, of {line['num_points']} runs of the pool and of random "
            f"subsets{fit}{left_out}. The interval resamples {drawn}, and fits the line anew each "
            "time. A star: outside of the baseline's range, so extrapolated."
        )
    rows = []
    for row in found["rows"]:
        effective = _effective(row, table)
        drop = points(row["drop"], table["shift"])
        if row["drop_std"] is not None:
            drop += f" ± {100 * row['drop_std']:.1f}"
        rows.append([row["run"], effective, _interval(row["interval"], table["shift"]), drop])
    head = ["Subset", "Effective robustness", "Bootstrap", "Drop"]
    return Section("Effective robustness", notes, head, rows)


def _effective(row: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """Returns the effective robustness of a run, with a star where it is extrapolated."""
    if row["effective"] is None:
        return "-"
    return points(row["effective"], table["shift"]) + "*" * row["extrapolated"]


def _overlap(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Section:
    rows = [
        [one, *(f"{pair['jaccard']:.2f} ({pair['share']:.0%})" for pair in others.values())]
        for one, others in found.items()
    ]
    notes = [
        "Jaccard index: samples that both have, of those that either has. In brackets: the share "
        "of the row's samples that the column's subset has, too."
    ]
    return Section("Overlap of curations", notes, ["Subset", *found], rows)


def points(value: float, metric: str) -> str:
    """Returns a difference with its sign, of shares in points."""
    return show_difference(metric, value)


def _spread(found: Mapping[str, Any] | None, metric: str) -> str:
    if found is None:
        return "-"
    mean = show(metric, found["mean"])
    if found["std"] is None:
        return mean
    return f"{mean} ± {points(found['std'], metric).removeprefix('+')}"


def _interval(found: Sequence[float] | None, metric: str) -> str:
    return "-" if found is None else f"{points(found[0], metric)} to {points(found[1], metric)}"


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
