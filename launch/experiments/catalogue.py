"""Renders results and the catalogue's texts as `docs/methods.md`.

The texts are a folder of YAML files: `columns.yaml` (a title and the metrics whose mean it shows),
and one file a method with a title, a paper, what is expected, what was found, and the runs
(`SWEEP/RUN`) that measure it; `further.md`, if there is one, ends the page. The output depends on
these files alone, so a test can compare it with what is checked in.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from ..config.identity import PRECISION, Identity
from ..reporting.runs import show
from ..reporting.tables import duration
from .results import read_results

HEAD = """# Method catalogue

Every row is measured by `counterpoint sweep`; rows without a measurement say so. A number is the
mean over seeds, with the standard deviation between seeds. "Against" is the difference of the first
column to a baseline run, and whether its sign is the one the paper reports; a difference of less
than the pooled deviation of the seeds says nothing. "Collapsed" counts seeds that ended with a
gradient norm below 0.001, with (nearly) equal embeddings: they are no comparison. "Cost" is the
time for a pair relative to that of {reference}, evaluations included:
processor time of the training process, or, with an accelerator, time on the clock. This page is
rendered from `{catalogue}` and the files in `{results}` by `counterpoint sweep --render`: add a
method there, not here.
"""
NEEDED_KEYS = ("title", "objective", "what", "runs")
METHOD_KEYS = (*NEEDED_KEYS, "paper", "expectation", "found", "place", "baseline", "direction")
# By sweep, the run whose time is 1: others were measured in another state of the machine.
REFERENCES = {
    "catalogue": "catalogue/clip",
    "distillation": "distillation/none",
    "distillation_terms": "distillation/none",
}
# Norms of runs that learn are above 0.1; four runs ended with equal embeddings, at 7e-4 to 4e-8.
COLLAPSED_NORM = 1e-3
DIRECTIONS = {"up": 1, "down": -1, "none": 0}


def render_file(catalogue: Path, results: Path) -> Path:
    """Writes the page beside the folder (`methods/` -> `methods.md`); returns its path."""
    page = render(catalogue, results)
    out = catalogue.with_suffix(".md")
    out.write_text(page, encoding="utf-8")
    return out


def render(catalogue: Path, results: Path) -> str:
    """Returns the page."""
    columns, methods = read_catalogue(catalogue)
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in read_results(results):
        groups.setdefault(f"{record['sweep']}/{record['run']}", []).append(record)
    table = Table(columns, groups)
    named = {name for method in methods for name in method["runs"]}
    folders = {"catalogue": f"{catalogue.name}/", "results": f"{results.name}/"}
    lines = [HEAD.format(**folders, reference=" or ".join(dict.fromkeys(REFERENCES.values())))]
    lines += table.head()
    for method in methods:
        lines += [table.row(method, name, config) for name, config in method["runs"].items()]
    unknown = {"title": "(not in the catalogue)", "objective": ""}
    for name in sorted(set(groups) - named):
        lines.append(table.row(unknown, name, groups[name][0]["config"]))
    left_out = [_older(name, groups[name]) for name in sorted(groups)]
    if any(left_out):
        lines += ["", *filter(None, left_out)]
    for method in methods:
        lines += ["", *_section(method)]
    further = catalogue / "further.md"
    if further.is_file():
        lines += ["", further.read_text(encoding="utf-8").strip()]
    return "\n".join(lines) + "\n"


def read_catalogue(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Reads and checks the texts: the columns, and the methods by place and title.

    Raises:
        ValueError: the folder or a key is missing, or a key is unknown.
    """
    if not (folder / "columns.yaml").is_file():
        raise ValueError(f"there is no catalogue {folder} with columns.yaml; name one: --catalogue")
    texts = {
        file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for file in sorted(folder.glob("*.yaml"))
    }
    columns = texts.pop("columns").get("columns")
    if not columns or not texts:
        raise ValueError(f"{folder} has no columns or no methods; see docs/methods/ of the project")
    for name, method in texts.items():
        for key in set(method) - set(METHOD_KEYS):
            names = ", ".join(METHOD_KEYS)
            raise ValueError(f"{folder}/{name}.yaml: unknown key {key}; known: {names}")
        for key in NEEDED_KEYS:
            if not method.get(key):
                raise ValueError(f"{folder}/{name}.yaml: the key {key} is missing")
        if not isinstance(method.get("baseline") or {}, dict):
            raise ValueError(
                f"{folder}/{name}.yaml: baseline is {method['baseline']!r}; write "
                "{SWEEP/RUN: SWEEP/BASELINE}"
            )
        if method.get("direction", "none") not in DIRECTIONS:
            raise ValueError(f"{folder}/{name}.yaml: direction must be one of {list(DIRECTIONS)}")
    return columns, sorted(texts.values(), key=lambda m: (m.get("place", 1), m["title"].lower()))


def current(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of the configuration that was run last."""
    newest = max(records, key=lambda record: (record["date"], record["seed"]))
    trained = Identity.from_json(newest["identity"])
    return [r for r in records if trained.agrees(Identity.from_json(r["identity"]))]


def values(metrics: list[str], records: list[dict[str, Any]]) -> list[float] | None:
    """Returns the mean of `metrics` of every record; None when one was not measured."""
    rows = [[record["final"].get(metric) for metric in metrics] for record in records]
    if any(part is None for parts in rows for part in parts):
        return None
    return [statistics.fmean(parts) for parts in rows]


def spread(metrics: list[str], records: list[dict[str, Any]]) -> str:
    """Returns `mean ± std` over seeds of the mean of `metrics`; "-" when one was not measured."""
    means = values(metrics, records)
    if means is None:
        return "-"
    mean = show(metrics[0], statistics.fmean(means))
    if len(means) == 1:
        return mean
    return f"{mean} ± {show(metrics[0], statistics.stdev(means))}"


class Table:
    """The table of runs: titles with their metrics, over results by `SWEEP/RUN`."""

    def __init__(self, columns: list[dict[str, Any]], groups: dict[str, list[dict[str, Any]]]):
        self.columns, self.groups = columns, groups

    def head(self) -> list[str]:
        """Returns the header lines."""
        titles = [column["title"] for column in self.columns]
        head = ["Method", "Objective", "Run", "Config", *titles]
        head += ["Against", "Cost", "Seeds", "Pairs seen", "Time", "Measured on"]
        numeric = len(titles) + 5
        return [_line(head), _line(["---"] * 4 + ["---:"] * numeric + ["---"])]

    def row(self, method: dict[str, Any], name: str, config: str) -> str:
        """Returns the line of one run of a method."""
        if name not in self.groups:
            cells = ["not run", *["" for _ in self.columns[1:]], "", "", "0", "", "", ""]
        else:
            records = current(self.groups[name])
            cells = [spread(column["metrics"], records) for column in self.columns]
            cells += [self._against(method, name, records), self._cost(name, records)]
            samples = " or ".join(sorted({f"{record['samples']:,}" for record in records}))
            seconds = duration(statistics.fmean(record["seconds"] for record in records))
            cells += [str(len(records)), samples, seconds, _measured(records)]
        return _line([method["title"], method["objective"], name, f"`{config}`", *cells])

    def _cost(self, name: str, records: list[dict[str, Any]]) -> str:
        reference = REFERENCES.get(name.split("/")[0])
        if reference not in self.groups:
            return ""

        def seconds_a_pair(records: list[dict[str, Any]]) -> float:
            return statistics.median(_busy(record) / record["samples"] for record in records)

        one = seconds_a_pair(current(self.groups[reference]))
        return f"{seconds_a_pair(records) / one:.2f}"

    def _against(self, method: dict[str, Any], name: str, records: list[dict[str, Any]]) -> str:
        baseline = (method.get("baseline") or {}).get(name)
        if baseline not in self.groups:
            return ""
        metrics = self.columns[0]["metrics"]
        ours, theirs = values(metrics, records), values(metrics, current(self.groups[baseline]))
        if ours is None or theirs is None:
            return ""
        difference = statistics.fmean(ours) - statistics.fmean(theirs)
        text = f"{100 * difference:+.1f} to {baseline}"
        if dead := sum(collapsed(record) for record in records):
            return f"{text}, collapsed in {dead} of {len(records)} seeds"
        if min(len(ours), len(theirs)) < 2:
            return f"{text}, one seed"
        pooled = ((statistics.variance(ours) + statistics.variance(theirs)) / 2) ** 0.5
        expected = DIRECTIONS[method.get("direction", "none")]
        if abs(difference) < pooled:
            return f"{text}, within the spread"
        if not expected:
            return text
        return f"{text}, {'agrees' if difference * expected > 0 else 'disagrees'}"


def collapsed(record: dict[str, Any]) -> bool:
    """Whether training ended without a gradient: such a run is no comparison."""
    return record["final"].get("grad_norm", 1.0) < COLLAPSED_NORM


def _busy(record: dict[str, Any]) -> float:
    """Returns seconds of work: on a busy machine processor time is the better measure."""
    on_cpu = not record["machine"].get("accelerators")
    return (on_cpu and record.get("cpu_seconds")) or record["seconds"]


def _measured(records: list[dict[str, Any]]) -> str:
    machines = Counter(_machine(record["machine"]) for record in records)
    dates = sorted({record["date"][:10] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    codes = {_code(record["commit"]) for record in records}
    precisions = {record["identity"]["values"].get(PRECISION) or "32-true" for record in records}
    parts = ["; ".join(sorted(machines)), ", ".join(sorted(precisions)), when]
    return "; ".join([*parts, ", ".join(sorted(codes))])


def _machine(machine: dict[str, Any]) -> str:
    accelerators = Counter(machine.get("accelerators") or [])
    extra = "".join(f" + {count} x {name}" for name, count in sorted(accelerators.items()))
    return f"{machine['cores']} cores, {machine['cpu']}{extra}"


def _code(commit: dict[str, Any]) -> str:
    revision = commit["revision"]
    return f"{revision[:8]}{' changed' if commit['dirty'] else ''}" if revision else "no commit"


def _older(name: str, records: list[dict[str, Any]]) -> str | None:
    count = len(records) - len(current(records))
    return f"{name}: {count} result(s) of an older configuration are left out." if count else None


def _section(method: dict[str, Any]) -> list[str]:
    lines = [f"## {method['title']}", "", method["what"].strip(), ""]
    for key in ("paper", "expectation", "found"):
        text = (method.get(key) or "").strip()
        if text or key == "found":
            lines.append(f"- **{key.capitalize()}:** {text or 'nothing yet.'}")
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
