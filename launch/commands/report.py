"""`counterpoint report RUN_DIR...`: run folders in, one self-contained HTML page out."""

import sys
from collections.abc import Callable
from pathlib import Path

from ...data.files import write_whole
from ..arguments import Arguments
from ..reporting.grid import Pairs, build_grid, pairs_of_run
from ..reporting.page import GridEntry, render
from ..reporting.panels import MANY
from ..reporting.runs import Run, read_runs
from ..reporting.tables import Row, final_numbers, short_title

NUM_RESULTS = 3  # of many runs, on the screen


def main(argv: list[str]) -> int:
    """Writes the page and prints its path and the final numbers; returns the exit status."""
    parser = Arguments(
        prog="counterpoint report",
        description="Writes one HTML page, in need of no other file, about one or more runs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="folders that `fit` wrote")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="default: report.html in the run's folder; of several, comparison.html in the first's",
    )
    parser.add_argument(
        "--suite",
        metavar="NAME",
        help="suite whose held-out captions are shown (default: the run's own); none: no images",
    )
    options = parser.parse_args(argv)
    folders = run_folders(options.runs)
    out = write_report(folders, out=options.out, suite=options.suite)
    print("\n".join(final_lines(read_runs(folders))))
    print(f"report: {out}")
    return 0


def run_folders(named: list[str]) -> list[str]:
    """Returns those of several paths that are run folders, and prints which are not (of `runs/*`).

    If none is, all are returned: reading them raises the error.
    """
    folders = [path for path in named if Path(path, "metrics.jsonl").is_file()]
    if not folders:
        return named
    if left_out := [path for path in named if path not in folders]:
        what = "has" if len(left_out) == 1 else "have"
        print(f"left out: {', '.join(left_out)} ({what} no metrics.jsonl)", file=sys.stderr)
    return folders


def final_lines(runs: list[Run]) -> list[str]:
    """Returns the page's table of results as lines of text: one row a number, one column a run.

    Of many runs a line each, with the numbers that one looks for first.
    """
    numbers = final_numbers(runs)
    if len(runs) > MANY:
        return _lines_of_many(runs, numbers)
    rows = [row for section in numbers.values() for row in section]
    return _aligned([["", *(run.name for run in runs)], *([r.title, *r.cells] for r in rows)])


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([f"{title:<{widths[0]}}", *map(str.rjust, cells, widths[1:])]).rstrip()
        for title, *cells in table
    ]


def _lines_of_many(runs: list[Run], numbers: dict[str, list[Row]]) -> list[str]:
    first = {"loss": "loss", "pairs_per_s": "pairs/s, mean", "samples": "pairs seen"}
    rows = [(short_title(row.name), row) for row in numbers.get("Evaluation", [])[:NUM_RESULTS]]
    rows += [
        (first[row.name], row)
        for section in ("Training", "Extent")
        for row in numbers.get(section, [])
        if row.name in first
    ]
    table = [["run", *(title for title, _ in rows), ""]]
    for index, run in enumerate(runs):
        state = "" if run.summary else "not ended"
        table.append([run.name, *(row.cells[index] for _, row in rows), state])
    return [*_aligned(table), "(all numbers and settings are on the page)"]


def write_report(
    folders: list[str],
    out: str | Path | None = None,
    suite: str | None = None,
    pairs_of: Callable[[Path, str | None], Pairs] = pairs_of_run,
) -> Path:
    """Writes the page and returns its path.

    Args:
        folders: run folders, finished or not.
        out: the file; by default `report.html` in the run's folder, `comparison.html` in the first
            one's of several, whose own report stays.
        suite: a suite's name or file; None: the run's own; "none": no images.
        pairs_of: (run folder, suite) -> held-out captions and images with their features;
            raises ValueError with a sentence when there are none.

    Raises:
        ValueError: a folder is no run folder, or matplotlib is missing.
    """
    runs = read_runs([str(folder) for folder in folders])
    usual = "report.html" if len(runs) == 1 else "comparison.html"
    out = Path(out) if out is not None else runs[0].folder / usual
    text = render(runs, _grids(runs, suite, pairs_of))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, text)
    return out


def _grids(
    runs: list[Run], suite: str | None, pairs_of: Callable[[Path, str | None], Pairs]
) -> list[GridEntry]:
    if suite is None and len(runs) > MANY:
        why = f"Images are shown for up to {MANY} runs; name a suite (--suite) to have them here."
        return [GridEntry("", None, why)]
    if suite == "none":
        return [GridEntry("", None, "No images were asked for (--suite none).")]
    entries = []
    for run in runs:
        try:
            entries.append(GridEntry(run.name, build_grid(pairs_of(run.folder, suite))))
        except ValueError as error:
            # The page about a run whose data or weights are gone is still worth having.
            entries.append(GridEntry(run.name, None, f"No images can be shown: {error}."))
    return entries
