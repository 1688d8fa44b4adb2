"""`counterpoint sweep FILE`: (config, seed) pairs in, one result file a pair out.

Pairs that already have a result of the same configuration are skipped, so a table grows over days
and machines: start the same command again, or on a second machine with the same folder, at will.
A pair that was interrupted starts anew, since its time and its commit are part of the result.
`counterpoint sweep --render` writes the method catalogue from the results.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..arguments import Arguments
from ..config.identity import Identity
from ..config.packaged import find
from ..experiments.catalogue.page import outdated, render_file
from ..experiments.pairs import Runner, stoppable
from ..experiments.results import Pair, identity
from ..experiments.run_traces import keep_traces
from ..experiments.yaml_files import check_keys, check_seeds, read_yaml


def main(argv: list[str]) -> int:
    """Runs a sweep or renders the catalogue; returns 1 when a run failed."""
    parser = Arguments(
        prog="counterpoint sweep",
        description="Runs (config, seed) pairs, each once, and renders the table of results.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a YAML file, or a packaged sweep")
    parser.add_argument("--limit", type=int, metavar="N", help="run at most N pairs now")
    parser.add_argument("--only", metavar="NAME", help="only this run of the sweep")
    parser.add_argument(
        "--precision", metavar="P", help="of every run, so that a table has one on all machines"
    )
    parser.add_argument("--results", type=Path, default=Path("docs/results"), metavar="DIR")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), metavar="DIR")
    parser.add_argument("--render", action="store_true", help="write the method catalogue")
    parser.add_argument("--catalogue", type=Path, default=Path("docs/methods"), metavar="DIR")
    options = parser.parse_args(argv)
    if not options.file and not options.render:
        raise ValueError("name a sweep FILE, or --render")
    status = 0
    if options.file:
        with stoppable(signal.SIGTERM):
            pairs = read_sweep(find(options.file, "sweep"), options.only)
            further = [f"--trainer.precision={options.precision}"] if options.precision else []
            runner = Runner(
                options.results, options.runs, options.limit, further=further, keep=keep_traces
            )
            status = runner.run(pairs)
    if options.render:
        print(f"catalogue: {render_file(options.catalogue, options.results)}")
        for sentence in outdated(options.catalogue, options.results):
            print(f"{options.catalogue}/{sentence}; see docs/howto/compare.md", file=sys.stderr)
    return status


def read_sweep(
    file: Path,
    only: str | None = None,
    identity_of: Callable[[str, dict[str, Any]], Identity] = identity,
) -> list[Pair]:
    """Reads a sweep file: `name`, and `runs: {NAME: {config, seeds, set}}`.

    Seeds vary slowest, so that every run has its first result before any has its second.
    """
    content = read_yaml(file)
    check_keys(content, {"name", "runs"}, {"name", "runs"}, str(file))
    runs = content["runs"]
    if not isinstance(runs, dict):
        raise ValueError(
            f"{file}: runs is {runs}; write NAME: {{config: ..., seeds: [0]}} below it"
        )
    if only is not None and only not in runs:
        raise ValueError(f"{file} has no run {only}; it has {', '.join(runs)}")
    pairs = []
    for name, run in runs.items():
        if only not in (None, name):
            continue
        check_keys(run, {"config", "seeds", "set"}, {"config", "seeds"}, f"{file}, run {name}")
        seeds = check_seeds(run["seeds"], f"{file}, run {name}")
        overrides = run.get("set") or {}
        if not isinstance(overrides, dict):
            raise ValueError(
                f"{file}, run {name}: set is {overrides}; write keys and values such as "
                "{phases.train.samples: 40000}"
            )
        trained = identity_of(run["config"], overrides)
        pairs += [Pair(content["name"], name, run["config"], s, trained, overrides) for s in seeds]
    return sorted(pairs, key=lambda pair: pair.seed)


def read_pairs(file: str) -> list[Pair]:
    """Reads the pairs of a sweep, by path or packaged name, whose runs somebody else parses."""
    return read_sweep(find(file, "sweep"), identity_of=lambda *_: Identity({}, frozenset()))
