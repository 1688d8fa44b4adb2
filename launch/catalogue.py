"""Results and the catalogue's texts in, `docs/methods.md` out.

The texts are YAML: `columns` (a title and the metrics whose mean it shows) and `methods`, each with
a title, a paper, what is expected, what was found, and the runs (`SWEEP/RUN`) that measure it. The
output depends on these files alone, so a test can compare it with what is checked in.
"""

import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from .identity import Identity
from .reporting.runs import show
from .reporting.tables import duration
from .results import read_results

HEAD = """# Method catalogue

Every row is measured by `counterpoint sweep`; rows without a measurement say so. A number is the
mean over seeds, with the standard deviation between seeds. This page is rendered from
`{catalogue}` and the files in `{results}` by `counterpoint sweep --render`: add a method there, not
here.
"""
METHOD_KEYS = ("title", "objective", "what", "paper", "expectation", "found", "runs")
NEEDED_KEYS = ("title", "objective", "what", "runs")


def render_file(catalogue: Path, results: Path) -> Path:
    """Writes the page beside the catalogue (`methods.yaml` -> `methods.md`); returns its path."""
    out = catalogue.with_suffix(".md")
    out.write_text(render(catalogue, results), encoding="utf-8")
    return out


def render(catalogue: Path, results: Path) -> str:
    """Returns the page.

    Raises:
        ValueError: the catalogue is missing or malformed.
    """
    texts = read_catalogue(catalogue)
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in read_results(results):
        groups.setdefault(f"{record['sweep']}/{record['run']}", []).append(record)
    columns, methods = texts["columns"], texts["methods"]
    named = {name for method in methods.values() for name in method["runs"]}
    titles = [column["title"] for column in columns]
    lines = [HEAD.format(catalogue=catalogue.name, results=f"{results.name}/")]
    lines += _table_head(titles)
    for method in methods.values():
        for name, config in method["runs"].items():
            lines.append(_row(method["title"], method["objective"], name, config, groups, columns))
    for name in sorted(set(groups) - named):
        config = groups[name][0]["config"]
        lines.append(_row("(not in the catalogue)", "", name, config, groups, columns))
    left_out = [_older(name, groups[name]) for name in sorted(groups)]
    if any(left_out):
        lines += ["", *filter(None, left_out)]
    for method in methods.values():
        lines += ["", *_section(method)]
    return "\n".join(lines) + "\n"


def read_catalogue(file: Path) -> dict[str, Any]:
    """Reads and checks the texts.

    Raises:
        ValueError: the file is missing, a key is missing or unknown.
    """
    if not file.is_file():
        raise ValueError(f"there is no catalogue {file}; name one with --catalogue")
    texts = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    for key in ("columns", "methods"):
        if not texts.get(key):
            raise ValueError(f"{file} has no {key}; see the catalogue that ships in docs/")
    for name, method in texts["methods"].items():
        for key in set(method) - set(METHOD_KEYS):
            raise ValueError(f"{file}, {name}: unknown key {key}; known: {', '.join(METHOD_KEYS)}")
        for key in NEEDED_KEYS:
            if not method.get(key):
                raise ValueError(f"{file}, {name}: the key {key} is missing")
    return texts


def current(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the records of one configuration: the one that was run last."""
    newest = max(records, key=lambda record: (record["date"], record["seed"]))
    trained = Identity.from_json(newest["identity"])
    return [r for r in records if trained.agrees(Identity.from_json(r["identity"]))]


def spread(metrics: list[str], records: list[dict[str, Any]]) -> str:
    """Returns `mean ± std` over seeds of the mean of `metrics`; "-" when one was not measured."""
    values = []
    for record in records:
        parts = [record["final"].get(metric) for metric in metrics]
        if any(part is None for part in parts):
            return "-"
        values.append(statistics.fmean(parts))
    mean = show(metrics[0], statistics.fmean(values))
    if len(values) == 1:
        return mean
    deviation = show(metrics[0], statistics.stdev(values))
    return f"{mean} ± {deviation}"


def _row(
    title: str,
    objective: str,
    name: str,
    config: str,
    groups: dict[str, list[dict[str, Any]]],
    columns: list[dict[str, Any]],
) -> str:
    if name not in groups:
        cells = ["not run", *["" for _ in columns[1:]], "0", "", "", ""]
    else:
        records = current(groups[name])
        cells = [spread(column["metrics"], records) for column in columns]
        samples = " or ".join(sorted({f"{record['samples']:,}" for record in records}))
        seconds = duration(statistics.fmean(record["seconds"] for record in records))
        cells += [str(len(records)), samples, seconds, _measured(records)]
    return _line([title, objective, name, f"`{config}`", *cells])


def _measured(records: list[dict[str, Any]]) -> str:
    machines = Counter(_machine(record["machine"]) for record in records)
    dates = sorted({record["date"][:10] for record in records})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    codes = {_code(record["commit"]) for record in records}
    return f"{'; '.join(sorted(machines))}; {when}; {', '.join(sorted(codes))}"


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


def _table_head(titles: list[str]) -> list[str]:
    head = ["Method", "Objective", "Run", "Config", *titles]
    head += ["Seeds", "Pairs seen", "Time", "Measured on"]
    numeric = len(titles) + 3
    return [_line(head), _line(["---"] * 4 + ["---:"] * numeric + ["---"])]


def _section(method: dict[str, Any]) -> list[str]:
    lines = [f"## {method['title']}", "", method["what"].strip(), ""]
    for key in ("paper", "expectation", "found"):
        text = (method.get(key) or "").strip()
        if text or key == "found":
            lines.append(f"- **{key.capitalize()}:** {text or 'nothing yet.'}")
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
