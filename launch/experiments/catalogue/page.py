"""Renders results and the catalogue's texts as `docs/methods.md`.

First what a reader may rely on, then a table a sweep, then each method: its text, its numbers by
seed, and where they were measured. The output depends on these files alone, so a test can compare
it with what is checked in.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...reporting.tables import duration
from .figures_quoted import unsupported
from .plots import draw_all
from .records import busy_seconds, read_groups
from .tables import (
    MIXED,
    OVER_SEEDS_ONLY,
    Results,
    Row,
    by_seed,
    provenance,
    read_all,
    short,
    show_verdict_difference,
    slug,
    spread,
    table,
)
from .texts import Measure, Method
from .verdicts import UNSEEN, WORDS, Verdict

HEAD = """# Method catalogue

What each idea does in a run of minutes on a small corpus, beside a run that differs in that idea.
Every figure is measured by `counterpoint sweep`, and this page is rendered from `{catalogue}` and
the files in `{results}` by `counterpoint sweep --render`: add a method there, not here."""
RELY = """## What you may rely on

A difference is the mean over pairs of runs with the same seed, in points; the bracket is its 95%
interval: Student's t over seeds and test items, or, where a result does not keep the outcomes of
its items, over seeds alone ({mark}), which holds for these very items. {mixed} marks a difference
of runs of which some were trained in bf16 and some in fp32.

- **agrees**, **disagrees**: the interval leaves zero out, on the side that the paper claims or on
  the other. Of the {count} comparisons below, one in twenty would do so without any effect.
- **no difference seen**: zero is inside. That is no proof of equality: {reach}
- **cannot be seen here**: whatever came out, the run cannot answer, for the reason given.
- **collapsed**: seeds ended with (nearly) equal embeddings or no gradient (norm below 0.001).
- **no verdict**: fewer than three seeds.

What a method does at the scale of its paper no run here answers."""
COLUMNS = ("Method", "Compared", "Result", "Baseline", "Difference", "Verdict", "Cost", "Seeds")
LEGEND = (
    "Result and baseline are the mean and the standard deviation over seeds, of *{first}* where no "
    "other measure is named.{cost}"
)
COST = (
    " Cost is the time for a pair relative to `{reference}`, evaluations included: processor time"
    " of the training process, or, with an accelerator, time on the clock."
)
REPEAT = (
    "`counterpoint sweep {name}` repeats these {count} runs: {whole} of the training processes "
    "(processor time; time on the clock where a result has no other). The longest row, "
    "`{longest}`, took {most}, all seeds."
)
BREAK = "<br>"  # within a cell
IMAGES = "images/of_{}"
AGAINST = {"pairs": "accuracy against pairs seen", "compute": "accuracy against compute"}
CAPTION = """A point is the mean of a run's seeds, the line through it spans them; a run whose
results keep its evaluations on the way has a curve for each seed. Shape and colour say what came of
the first claim about it, as below. Runs that begin with trained weights are left out."""
PROVENANCE = ("Run", "Config", "Pairs seen", "Time", "Measured on")


def render_file(catalogue: Path, results: Path) -> Path:
    """Writes the page beside the folder (`methods/` -> `methods.md`), and its drawings.

    Drawings of before that are no longer on the page are removed. Returns the page's path.
    """
    start = catalogue.parent
    files = render(catalogue, results)
    for old in (start / IMAGES.format(catalogue.name)).glob("*.svg"):
        if old.relative_to(start).as_posix() not in files:
            old.unlink()
    for name, content in files.items():
        (start / name).parent.mkdir(parents=True, exist_ok=True)
        (start / name).write_text(content, encoding="utf-8")
    return catalogue.with_suffix(".md")


def outdated(folder: Path, results: Path) -> list[str]:
    """Returns a sentence for each figure in a text that no result supports."""
    found = read_all(folder, results)
    return [
        sentence
        for method in found.catalogue.methods
        for sentence in unsupported(found, method, folder.parent)
    ]


def render(folder: Path, results: Path) -> dict[str, str]:
    """Returns the page and its drawings, by their paths from the folder's parent on."""
    found = read_all(folder, results)
    images = IMAGES.format(folder.name)
    drawings = {f"{images}/{name}": drawing for name, drawing in draw_all(found).items()}
    page = _page(found, folder, results, drawings)
    return {f"{folder.name}.md": page, **drawings}


def _page(found: Results, folder: Path, results: Path, drawings: Mapping[str, str]) -> str:
    catalogue, groups = found.catalogue, read_groups(results)
    images = IMAGES.format(folder.name)
    lines = [HEAD.format(catalogue=f"{folder.name}/", results=f"{results.name}/"), ""]
    for plot in catalogue.plots:
        for kind, words in AGAINST.items():
            name = f"{images}/{plot.name}_{kind}.svg"
            lines += [f"![{plot.title}: {words}]({name})", ""] if name in drawings else []
    lines += [CAPTION, ""] if any(plot.sweeps for plot in catalogue.plots) and drawings else []
    lines += [*_reliable(found), "", *_tables(found)]
    for run in sorted(groups):
        if count := len(groups[run]) - len(found.records[run]):
            lines += ["", f"{run}: {count} result(s) of an older configuration are left out."]
    for method in catalogue.methods:
        lines += ["", *_section(found, method)]
        if (name := f"{images}/{method.stem}.svg") in drawings:
            lines += ["", f"![Curves of {method.title}]({name})"]
    return "\n".join(lines) + "\n"


def _reliable(found: Results) -> list[str]:
    """Returns the claims by verdict, and what so few seeds can show."""
    judged = [row.verdict for row in found.rows if row.verdict]
    reaches = [
        (v.interval[1] - v.interval[0]) / 2
        for v in judged
        if v.interval and v.difference and v.difference.num_seeds == 3
    ]
    reach = "three seeds show large differences only."
    if reaches:
        half = 100 * statistics.median(reaches)
        reach = f"three seeds show differences from about {half:.1f} points on (the median row)."
    lines = [RELY.format(mark=OVER_SEEDS_ONLY, mixed=MIXED, reach=reach, count=len(judged)), ""]
    rows = []
    for word in WORDS:
        chosen = [row for row in found.rows if row.verdict and row.verdict.word == word]
        # Rows that share a reason are named before it.
        reasons: dict[str, list[str]] = {}
        for row in chosen:
            assert row.verdict is not None
            reason = row.verdict.claim.unseen if word == UNSEEN else ""
            reasons.setdefault(reason, []).append(_named(row))
        named = [BREAK.join(names) + (f": {why}" if why else "") for why, names in reasons.items()]
        if named:
            rows.append([f"**{word}**", str(len(chosen)), BREAK.join(named)])
    if rows:
        lines += table(("Verdict", "Rows", "Methods"), rows)
    if found.missing:
        lines += ["", f"Not run yet: {', '.join(f'`{run}`' for run in found.missing)}."]
    return lines


def _named(row: Row) -> str:
    verdict = row.verdict
    assert verdict is not None
    name = f"[{row.method.title}](#{slug(row.method.title)})"
    same = [claim for claim in row.method.claims if claim.run == row.run]
    details = [f"`{row.run}`"] if len({claim.run for claim in row.method.claims}) > 1 else []
    if len({claim.against for claim in same}) > 1:
        details.append(f"against `{short(verdict.claim.against, row.run)}`")
    if len({claim.measure for claim in same}) > 1 and verdict.measure:
        details.append(verdict.measure.title)
    name += f" ({', '.join(details)})" if details else ""
    if verdict.word == UNSEEN or verdict.interval is None:
        return name
    return f"{name} {show_verdict_difference(verdict)}"


def _tables(found: Results) -> list[str]:
    """Returns a table for each sweep, those with a text first."""
    known = [sweep.name for sweep in found.catalogue.sweeps]
    used = sorted({run.partition("/")[0] for run in found.records})
    lines = []
    for name in (*(n for n in known if n in used), *(n for n in used if n not in known)):
        sweep = found.catalogue.sweep(name)
        rows = [found.cells(row) for row in found.rows if row.run.startswith(f"{name}/")]
        strangers = set(found.records) - {r for m in found.catalogue.methods for r in m.runs}
        for run in sorted(run for run in strangers if run.startswith(f"{name}/")):
            rows.append([*_stranger(found, run), *[""] * 3, found.cost(run), _seeds(found, run)])
        first = found.first(f"{name}/").title
        cost = COST.format(reference=sweep.reference) if sweep.reference in found.records else ""
        legend = LEGEND.format(first=first, cost=cost)
        lines += [f"## {sweep.title}", "", f"{sweep.text} {legend}".strip(), ""]
        lines += [_repeated(found, name), ""]
        changed = found.catalogue.older.items()
        older = [f"`{short(r)}` ({how})" for r, how in changed if r.startswith(f"{name}/")]
        lines += [f"Of an older configuration: {'; '.join(older)}.", ""] if older else []
        lines += [*table(COLUMNS, rows), ""]
        if sweep.measures:
            lines += [*_numbers(found, name, sweep.measures), ""]
    return lines[:-1]


def _repeated(found: Results, sweep: str) -> str:
    """Returns how a sweep is run again, and what its runs have taken."""
    runs = {run: found.records[run] for run in found.records if run.startswith(f"{sweep}/")}
    seconds = {run: sum(map(busy_seconds, records)) for run, records in runs.items()}
    longest = max(seconds, key=lambda run: seconds[run])
    whole, most = duration(sum(seconds.values())), duration(seconds[longest])
    count = sum(map(len, runs.values()))
    return REPEAT.format(name=sweep, count=count, whole=whole, most=most, longest=short(longest))


def _numbers(found: Results, sweep: str, measures: Sequence[Measure]) -> list[str]:
    """Returns the table of all of a sweep's measures."""
    runs = [run for run in found.records if run.startswith(f"{sweep}/")]
    rows = [[f"`{short(r)}`", *(spread(m, found.records[r]) for m in measures)] for r in runs]
    return table(("Run", *(m.title for m in measures)), rows, numeric=1)


def _stranger(found: Results, run: str) -> list[str]:
    unknown = Method("", "(not in the catalogue)", "", "", {run: ""})
    _, compared, result, *_ = found.cells(Row(unknown, run))
    return [unknown.title, compared, result]


def _seeds(found: Results, run: str) -> str:
    return str(len(found.records[run]))


def _section(found: Results, method: Method) -> list[str]:
    lines = [f"## {method.title}", "", method.what, "", f"- **Objective:** {method.objective}"]
    for title, text in (("Paper", method.paper), ("Expectation", method.expectation)):
        lines += [f"- **{title}:** {text}"] if text else []
    judged = [row.verdict for row in found.rows if row.method is method and row.verdict]
    lines += [f"- **Claim:** {_claim(verdict)}" for verdict in judged]
    lines.append(f"- **Found:** {method.found or 'nothing yet.'}")
    if method.elsewhere:
        quoted = "; ".join(f"{', '.join(v)} ({source})" for source, v in method.elsewhere.items())
        lines.append(f"- **Not from these runs:** {quoted}")
    runs = [run for run in method.runs if run in found.records]
    if not runs:
        return [*lines, "- **Runs:** none has been measured yet."]
    shown = found.measures(method)
    if shown:
        rows = [[f"`{r}`", *(by_seed(m, found.records[r]) for m in shown)] for r in runs]
        lines += ["", *table(("Run", *(m.title for m in shown)), rows)]
    where = [provenance(run, method.runs[run], found.records[run]) for run in runs]
    return [*lines, "", *table(PROVENANCE, where)]


def _claim(verdict: Verdict) -> str:
    claim = verdict.claim
    runs = f"`{short(claim.run)}` against `{short(claim.against, claim.run)}`"
    says = claim.says or "nothing is claimed"
    return f"{runs}: {says.rstrip('.')}. *{verdict.text[0].upper()}{verdict.text[1:].rstrip('.')}.*"
