"""The catalogue's texts: a folder of YAML files, read and checked.

`columns.yaml` has the measures that every run shows which has them, and the sweeps, in the order of
their tables. Each other file is a method: what it is, what its paper claims, the runs (`SWEEP/RUN`)
that measure it, and `claims`: which run is compared with which, and what the paper says of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NEEDED = ("title", "objective", "what", "runs")
KEYS = (
    *NEEDED,
    *("paper", "expectation", "claims", "measures", "found", "beside", "elsewhere", "place"),
)
CLAIM_KEYS = ("run", "against", "claim", "says", "measure", "unseen")
CLAIMS = ("better", "worse", "as_good", "nothing")
EXAMPLE = "{run: SWEEP/RUN, against: SWEEP/RUN, claim: better, says: what the paper says}"


@dataclass(frozen=True)
class Measure:
    """What is read of a result: a title, and the metrics whose mean it is."""

    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """What a paper says of a run beside another.

    Attributes:
        run: of the method.
        against: the run that differs from it in what is claimed.
        claim: one of `CLAIMS`.
        says: the claim in words.
        measure: what shows it; None: the first column that both have, or the method's own measure.
        unseen: why it cannot be seen here; "": it can.
    """

    run: str
    against: str
    claim: str
    says: str = ""
    measure: Measure | None = None
    unseen: str = ""


@dataclass(frozen=True)
class Sweep:
    """A table: its name, title, text, the run whose cost is 1, and what is measured there first."""

    name: str
    title: str
    text: str = ""
    reference: str = ""
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True)
class Plot:
    """A pair of plots at the page's head: name of its files, title, sweeps with one measure."""

    name: str
    title: str
    sweeps: tuple[str, ...]


@dataclass(frozen=True)
class Method:
    """One file. `stem` is its name; `beside` are runs that its text quotes, `elsewhere` figures."""

    stem: str
    title: str
    objective: str
    what: str
    runs: Mapping[str, str]
    paper: str = ""
    expectation: str = ""
    found: str = ""
    claims: tuple[Claim, ...] = ()
    measures: tuple[Measure, ...] = ()
    beside: tuple[str, ...] = ()
    elsewhere: Mapping[str, list[str]] = field(default_factory=dict)
    place: int = 1


@dataclass(frozen=True)
class Catalogue:
    """All texts. `older`: runs whose configuration has changed since they were run, and how."""

    columns: tuple[Measure, ...]
    sweeps: tuple[Sweep, ...]
    methods: tuple[Method, ...]
    plots: tuple[Plot, ...] = ()
    older: Mapping[str, str] = field(default_factory=dict)

    def sweep(self, name: str) -> Sweep:
        """Returns the sweep of a name; one without a text is called by it."""
        return next((s for s in self.sweeps if s.name == name), Sweep(name, f"Sweep `{name}`"))


def read_catalogue(folder: Path) -> Catalogue:
    """Reads and checks the texts: methods by place and title.

    Raises:
        ValueError: the folder or a key is missing, a key is unknown, or a claim names no run.
    """
    if not (folder / "columns.yaml").is_file():
        raise ValueError(f"there is no catalogue {folder} with columns.yaml; name one: --catalogue")
    texts = {
        file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for file in sorted(folder.glob("*.yaml"))
    }
    head = texts.pop("columns")
    if not head.get("columns") or not texts:
        raise ValueError(f"{folder} has no columns or no methods; see docs/methods/ of the project")
    columns = _measures(head["columns"])
    sweeps = [_sweep(name, text) for name, text in (head.get("sweeps") or {}).items()]
    methods = [_method(folder, stem, text, columns, sweeps) for stem, text in texts.items()]
    known = {run for method in methods for run in method.runs}
    for method in methods:
        for run in (*(claim.against for claim in method.claims), *method.beside):
            if run not in known:
                raise ValueError(
                    f"{folder}/{method.stem}.yaml names {run}, which is no run of any method; "
                    "add it to the runs of the file that it belongs to"
                )
    ordered = sorted(methods, key=lambda method: (method.place, method.title.lower()))
    plots = [
        Plot(name, text["title"], tuple(text["sweeps"]))
        for name, text in (head.get("plots") or {}).items()
    ]
    older = head.get("older") or {}
    for run in set(older) - known:
        raise ValueError(f"{folder}/columns.yaml: older names {run}, which is no run of any method")
    return Catalogue(columns, tuple(sweeps), tuple(ordered), tuple(plots), older)


def _method(
    folder: Path,
    stem: str,
    text: dict[str, Any],
    columns: tuple[Measure, ...],
    sweeps: list[Sweep],
) -> Method:
    where = f"{folder}/{stem}.yaml"
    for key in set(text) - set(KEYS):
        hint = f"; write claims: [{EXAMPLE}]" if key in ("baseline", "direction") else ""
        raise ValueError(f"{where}: unknown key {key}{hint}; known: {', '.join(KEYS)}")
    for key in NEEDED:
        if not text.get(key):
            raise ValueError(f"{where}: the key {key} is missing")
    measures = _measures(text.get("measures") or [])
    own = [measure for sweep in sweeps for measure in sweep.measures]
    titles = {measure.title: measure for measure in (*own, *columns, *measures)}
    claims = tuple(_claim(where, each, text["runs"], titles) for each in text.get("claims") or ())
    words = {
        key: (text.get(key) or "").strip() for key in ("paper", "expectation", "found", "what")
    }
    return Method(
        stem=stem,
        title=text["title"],
        objective=text["objective"],
        runs=text["runs"],
        claims=claims,
        measures=measures,
        beside=tuple(text.get("beside") or ()),
        elsewhere={k: list(map(str, v)) for k, v in (text.get("elsewhere") or {}).items()},
        place=text.get("place", 1),
        **words,
    )


def _claim(
    where: str, text: Any, runs: Mapping[str, str], measures: Mapping[str, Measure]
) -> Claim:
    if not isinstance(text, dict) or {"run", "against", "claim"} - set(text):
        raise ValueError(f"{where}: a claim is {text!r}; write {EXAMPLE}")
    for key in set(text) - set(CLAIM_KEYS):
        raise ValueError(f"{where}: unknown key {key} of a claim; known: {', '.join(CLAIM_KEYS)}")
    if text["run"] not in runs:
        raise ValueError(f"{where}: a claim is about {text['run']}, which is not among its runs")
    if text["claim"] not in CLAIMS:
        raise ValueError(
            f"{where}: a claim is {text['claim']!r}; it must be one of {', '.join(CLAIMS)}"
        )
    if text["claim"] != "nothing" and not text.get("says"):
        raise ValueError(f"{where}: the claim about {text['run']} lacks says: what the paper says")
    name = text.get("measure")
    if name is not None and name not in measures:
        raise ValueError(
            f"{where}: there is no measure {name!r}; give it under measures, or name one of "
            f"{', '.join(measures)}"
        )
    given = {key: (text.get(key) or "").strip() for key in ("says", "unseen")}
    measure = None if name is None else measures[name]
    return Claim(text["run"], text["against"], text["claim"], measure=measure, **given)


def _sweep(name: str, text: dict[str, Any]) -> Sweep:
    words = {key: (text.get(key) or "").strip() for key in ("text", "reference")}
    return Sweep(name, text["title"], measures=_measures(text.get("measures") or []), **words)


def _measures(texts: list[dict[str, Any]]) -> tuple[Measure, ...]:
    return tuple(Measure(text["title"], tuple(text["metrics"])) for text in texts)
