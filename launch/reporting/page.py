"""Runs and their grids in, the text of one self-contained HTML page out."""

import itertools
from dataclasses import dataclass
from pathlib import Path

from . import figures, panels, tables
from .grid import Grid
from .runs import Run

TEMPLATE = Path(__file__).resolve().parent.parent / "templates" / "report.html"
NUM_TILES = 8


@dataclass(frozen=True)
class GridEntry:
    """The grid of one run, or the sentence that says why there is none."""

    name: str
    grid: Grid | None
    reason: str = ""


def render(runs: list[Run], grids: list[GridEntry]) -> str:
    """Returns the page; nothing in it refers to another file or address."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    numbered = itertools.count(1)

    def drawn(group: list[panels.Panel]) -> list[tuple[panels.Panel, str]]:
        return [(panel, figures.draw(panel, f"figure{next(numbered)}")) for panel in group]

    numbers = tables.final_numbers(runs)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        subtitle=_subtitle(runs),
        runs=runs,
        tiles=_tiles(numbers) if len(runs) == 1 else [],
        numbers=numbers,
        evaluation=drawn(panels.evaluation_panels(runs)),
        training=drawn(panels.training_panels(runs)),
        other=drawn(panels.other_panels(runs)),
        columns=[list(numbers.items())[:1], list(numbers.items())[1:]],
        swatch=_swatch,
        grids=grids,
        errors=tables.error_counts(runs),
        configuration=tables.configuration(runs),
        versions=_versions(runs),
    )


def _swatch(colour: int) -> str:
    """Returns the style of a legend's mark: the same colour and dash as the curve's."""
    dash = ("solid", "dashed", "dotted", "double")[colour // figures.NUM_COLOURS % 4]
    name = f"var(--series-{colour % figures.NUM_COLOURS + 1})"
    return f"border-top-color: {name}; border-top-style: {dash}"


def _subtitle(runs: list[Run]) -> str:
    if len(runs) > 1:
        return ", ".join(run.name for run in runs)
    run = runs[0]
    parts = [f"{run.num_steps:,} steps", f"{run.num_samples:,} pairs"]
    parts.append(tables.duration(run.seconds))
    seed = run.summary.get("seed", run.config.get("seed"))
    if seed is not None:
        parts.append(f"seed {seed}")
    if not run.summary:
        parts.append("the run has not ended")
    return " \u00b7 ".join(parts)


def _tiles(numbers: dict[str, list[tables.Row]]) -> list[tables.Row]:
    """The few numbers that one looks for first: results, then speed."""
    results = [
        row
        for row in numbers.get("Evaluation", [])
        if row.name.endswith(("/top1", "recall@1")) and row.cells[0] != "-"
    ]
    speed = [row for row in numbers.get("Training", []) if row.name == "pairs_per_s"]
    return [*results[: NUM_TILES - len(speed)], *speed]


def _versions(runs: list[Run]) -> str:
    stated = [run.summary.get("versions") or {} for run in runs]
    same = stated[0] if all(each == stated[0] for each in stated) else {}
    return ", ".join(f"{name} {version}" for name, version in same.items())
