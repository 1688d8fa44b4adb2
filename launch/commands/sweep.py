"""`counterpoint sweep FILE`: (config, seed) pairs in, one result file a pair out.

Pairs that already have a result of the same configuration are skipped, so a table grows over days
and machines: start the same command again, or on a second machine with the same folder, at will.
A pair that was interrupted starts anew, since its time and its commit are part of the result.
`counterpoint sweep --render` writes the method catalogue from the results.
"""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from ...data.files import write_json
from ..arguments import Arguments
from ..config.identity import Identity
from ..config.packaged import find
from ..experiments.catalogue import render_file
from ..experiments.claims import claimed
from ..experiments.results import identity, read_result, result, settings
from ..reporting.tables import duration
from ..run.provenance import commit

NUM_TAIL = 12  # lines of a failed run's output that are shown
STOP_SECONDS = 60.0


@dataclass(frozen=True)
class Pair:
    """One run of one configuration with one seed."""

    sweep: str
    run: str
    config: str
    seed: int
    trained: Identity
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What files and messages call it."""
        return f"{self.run}-seed{self.seed}"


def main(argv: list[str]) -> int:
    """Runs a sweep or renders the catalogue; returns 1 when a run failed."""
    parser = Arguments(
        prog="counterpoint sweep",
        description="Runs (config, seed) pairs, each once, and renders the table of results.",
    )
    parser.add_argument("file", nargs="?", metavar="FILE", help="a YAML file, or a packaged sweep")
    parser.add_argument("--limit", type=int, metavar="N", help="run at most N pairs now")
    parser.add_argument("--only", metavar="NAME", help="only this run of the sweep")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), metavar="DIR")
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), metavar="DIR")
    parser.add_argument("--render", action="store_true", help="write the method catalogue")
    parser.add_argument("--catalogue", type=Path, default=Path("docs/methods"), metavar="DIR")
    options = parser.parse_args(argv)
    if not options.file and not options.render:
        raise ValueError("name a sweep FILE, or --render")
    status = 0
    # As an exception it gives claims back and stops the run in progress.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if options.file:
        pairs = read_sweep(find(options.file, "sweep"), options.only)
        status = run_sweep(pairs, options.results, options.runs, limit=options.limit)
    if options.render:
        print(f"catalogue: {render_file(options.catalogue, options.results)}")
    return status


def read_sweep(
    file: Path,
    only: str | None = None,
    identity_of: Callable[[str, dict[str, Any]], Identity] = identity,
) -> list[Pair]:
    """Reads a sweep file: `name`, and `runs: {NAME: {config, seeds, set}}`.

    Seeds vary slowest, so that every run has its first result before any has its second.
    """
    try:
        content = yaml.safe_load(file.read_bytes()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML ({' '.join(str(error).split())}); mend it") from None
    _check_keys(content, {"name", "runs"}, {"name", "runs"}, str(file))
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
        _check_keys(run, {"config", "seeds", "set"}, {"config", "seeds"}, f"{file}, run {name}")
        seeds = run["seeds"]
        if not isinstance(seeds, list) or len(set(seeds)) < len(seeds):
            raise ValueError(f"{file}, run {name}: seeds is {seeds}; write a list such as [0, 1]")
        overrides = run.get("set") or {}
        if not isinstance(overrides, dict):
            raise ValueError(
                f"{file}, run {name}: set is {overrides}; write keys and values such as "
                "{phases.train.samples: 40000}"
            )
        trained = identity_of(run["config"], overrides)
        pairs += [Pair(content["name"], name, run["config"], s, trained, overrides) for s in seeds]
    return sorted(pairs, key=lambda pair: pair.seed)


def fit_command(pair: Pair, run_dir: Path) -> list[str]:
    """Returns the command line that trains one pair."""
    command = [sys.executable, "-m", "counterpoint.launch.cli", "fit", "--config", pair.config]
    own = ["--seed", str(pair.seed), "--run_dir", str(run_dir)]
    return [*command, *own, *settings(pair.overrides)]


def run_sweep(
    pairs: list[Pair],
    results: Path,
    runs: Path,
    limit: int | None = None,
    command: Callable[[Pair, Path], list[str]] = fit_command,
) -> int:
    """Runs every pair that has no result yet; returns 1 when one failed, else 0."""
    num_run, failed = 0, []
    for number, pair in enumerate(pairs, start=1):
        head = f"[{number}/{len(pairs)}] {pair.sweep}/{pair.name}"
        file = results / pair.sweep / f"{pair.name}.json"
        with claimed(file.with_suffix(".claim")) as ours:
            if not ours:
                print(f"{head}: another process works on it ({file.with_suffix('.claim')})")
                continue
            known = read_result(file)
            if known and _same(known, pair):
                print(f"{head}: has a result")
                continue
            if num_run == limit:
                print(f"{head}: left for later (--limit {limit})")
                continue
            num_run += 1
            if known:
                print(f"{head}: the configuration has changed since its result; runs again")
            if not _run_pair(pair, head, file, runs, command):
                failed.append(pair.name)
    if failed:
        print(f"{len(failed)} failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run_pair(
    pair: Pair, head: str, file: Path, runs: Path, command: Callable[[Pair, Path], list[str]]
) -> bool:
    run_dir = runs / pair.sweep / f"{pair.name}-{pair.trained.digest[:8]}"
    log = run_dir.with_name(run_dir.name + ".log")
    shutil.rmtree(run_dir, ignore_errors=True)  # what an interrupted attempt left
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    print(f"{head}: runs, output in {log}", flush=True)
    code, start = commit(), time.monotonic()
    with log.open("wb") as output:
        status = _call(command(pair, run_dir), output)
    summary = run_dir / "summary.json"
    if status or not summary.is_file():
        why = f"exit status {status}" if status else "it wrote no summary.json"
        print(f"{head}: FAILED ({why}), the end of {log}:", file=sys.stderr)
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_TAIL:]
        print("\n".join(f"    {line}" for line in tail), file=sys.stderr)
        return False
    facts = json.loads(summary.read_text(encoding="utf-8"))
    record = result(
        pair.sweep, pair.run, pair.config, pair.seed, pair.overrides, pair.trained, code, facts
    )
    write_json(file, record)
    print(f"{head}: done in {duration(time.monotonic() - start)}", flush=True)
    return True


def _call(command: list[str], output: BinaryIO) -> int:
    with subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT) as process:
        try:
            return process.wait()
        except BaseException:
            # Ctrl-C or a termination: `fit` gets the time to stop its own processes.
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _same(known: dict[str, Any], pair: Pair) -> bool:
    # Overrides count beside the identity: some (a manifest's path) are no part of it.
    if (known["config"], known["overrides"]) != (pair.config, pair.overrides):
        return False
    return pair.trained.agrees(Identity.from_json(known["identity"]))


def _check_keys(content: Any, known: set[str], needed: set[str], where: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is {content!r}; it needs the keys {', '.join(sorted(needed))}")
    for key in sorted(set(content) - known):
        raise ValueError(f"{where}: unknown key {key}; known: {', '.join(sorted(known))}")
    for key in sorted(needed - set(content)):
        raise ValueError(f"{where}: the key {key} is missing")
