"""Renders runs and their grids as one self-contained HTML page."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..run.collapse import collapse
from . import about, figures, overview, panels, tables
from .grid import Grid
from .plot_data import embed
from .repeats import repeated
from .runs import Run

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
NUM_TILES = 8
NUM_FOR_SCATTER = 3  # runs


@dataclass(frozen=True)
class GridEntry:
    """The grid of one run, or the reason for its absence."""

    name: str
    grid: Grid | None
    reason: str = ""


def template(name: str, **filters: Callable[[Any], str]) -> Any:
    """Returns a Jinja template of `launch/templates/`; it may use no name that it is not given."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def render(runs: list[Run], grids: list[GridEntry]) -> str:
    """Returns the page; nothing in it refers to another file or address."""
    numbered = itertools.count(1)
    first = panels.drawn_first(runs)
    figure_panels: dict[str, panels.Panel] = {}

    def drawn(group: list[panels.Panel]) -> list[tuple[panels.Panel, str, str]]:
        figures_drawn = []
        for panel in group:
            name = f"figure{next(numbered)}"
            shown = [line for line in panel.lines if line.run in first]
            static = figures.draw(replace(panel, lines=shown), name) if shown else ""
            figure_panels[name] = panel
            figures_drawn.append((panel, static, name))
        return figures_drawn

    numbers = tables.final_numbers(runs)
    sections = {
        "evaluation": drawn(panels.evaluation_panels(runs)),
        "training": drawn(panels.training_panels(runs)),
        "other": drawn(panels.other_panels(runs)),
    }
    table, same = overview.columns(runs) if len(runs) >= NUM_FOR_SCATTER else ([], [])
    is_many = len(runs) > panels.MANY
    return template("report.html").render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        subtitle=_subtitle(runs),
        collapsed=[f"{run.name} {text}" for run in runs if (text := collapse(run.rows))],
        runs=runs,
        is_many=is_many,
        tiles=_tiles(numbers) if len(runs) == 1 else [],
        numbers=numbers,
        origin=[row for row in about.origin(runs) if len(runs) == 1 or row.name != "precision"],
        table=table,
        same=same,
        drawn_first=first,
        drawn_by=panels.chosen_by(runs),
        again=_again(runs),
        flat=panels.flat_metrics(runs),
        columns=[list(numbers.items())[:1], list(numbers.items())[1:]],
        swatch=_swatch,
        grids=grids,
        errors=tables.error_counts(runs),
        chosen=tables.chosen(runs),
        configuration=tables.configuration(runs),
        versions=_versions(runs),
        by_pairs=any(panel.x_label == "pairs seen" for panel in figure_panels.values()),
        has_epochs=all(run.epochs is not None for run in runs),
        data=embed(runs, figure_panels, table),
        scripts=[(TEMPLATES / name).read_text("utf-8") for name in ("charts.js", "runs.js")],
        **sections,
    )


def _swatch(colour: int) -> str:
    """Returns the style of a legend's mark: colour and dash of the curve."""
    dash = ("solid", "dashed", "dotted", "double")[colour // figures.NUM_COLOURS % 4]
    name = f"var(--series-{colour % figures.NUM_COLOURS + 1})"
    return f"border-top-color: {name}; border-top-style: {dash}"


def _subtitle(runs: list[Run]) -> str:
    if len(runs) > panels.MANY:
        ended = sum(bool(run.summary) for run in runs)
        return f"{ended} of {len(runs)} have ended"
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    run = runs[0]
    parts = [f"{run.num_steps:,} steps", f"{run.num_samples:,} pairs"]
    if run.epochs is not None:
        parts.append(f"{run.epochs:.3g} epochs")
    parts.append(tables.duration(run.seconds))
    seed = run.summary.get("seed", run.config.get("seed"))
    if seed is not None:
        parts.append(f"seed {seed}")
    if not run.summary:
        parts.append("the run has not ended")
    return " \u00b7 ".join(parts)


def _tiles(numbers: dict[str, list[tables.Row]]) -> list[tables.Row]:
    """Returns the main numbers: results, then speed as a mean over the run."""
    results = [
        row
        for row in numbers.get("Evaluation", [])
        if row.name.endswith(("/top1", "recall@1")) and row.cells[0] != "-"
    ]
    speed = [
        replace(row, title=row.title.removesuffix(", mean"), note="mean over the run")
        for row in numbers.get("Training", [])
        if row.name in ("pairs_per_s", "mfu")
    ]
    return [*results[: NUM_TILES - len(speed)], *speed]


def _again(runs: list[Run]) -> list[str]:
    """Returns `a = b` for every evaluation result shown under another name."""
    again = repeated(runs, panels.evaluation_metrics(runs))
    return [f"{panels.title_of(one)} = {panels.title_of(other)}" for one, other in again.items()]


def _versions(runs: list[Run]) -> str:
    stated: list[dict[str, Any]] = [run.summary.get("versions") or {} for run in runs]
    same = stated[0] if all(each == stated[0] for each in stated) else {}
    return ", ".join(f"{name} {version}" for name, version in same.items())
