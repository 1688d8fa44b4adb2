"""`counterpoint ablate FILE`: subsets of one pool, trained alike and compared in one table.

In: a pool, curations of it, a number of samples that every run sees, seeds. Out: a result for
each run, and `table.md`, `table.json` and `table.html`. Runs that have a result are not repeated,
and one that was interrupted goes on from its checkpoint: start the same command again, or on a
second machine that sees the folder. With `--slurm`: a job array, a run a task.
"""

import argparse
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

from ...data.files import whole_file, write_json, write_whole
from ...train.evaluation.outcomes import FILE, read_outcomes
from ..arguments import Arguments
from ..config.packaged import find, packaged_files
from ..experiments.ablation.plan import Plan, read_name, read_plan
from ..experiments.ablation.table import Results, make_table
from ..experiments.job_script import check_least, check_time, fill, groups, submit, write_script
from ..experiments.pairs import Runner, fit_command, stoppable
from ..experiments.results import Pair
from ..experiments.run_traces import history
from ..job_arguments import add_job_options
from ..reporting.ablation_page import render_page
from ..reporting.ablation_sections import render_markdown
from ..reporting.runs import read_run


def arguments() -> Arguments:
    """The options of the command."""
    made = Arguments(
        prog="counterpoint ablate",
        description="Trains on the pool, on curated subsets and on random ones, and compares them "
        "in one table. Start it again to go on; a second process or machine shares the work.",
    )
    made.add_argument("file", metavar="FILE", help="a YAML file, or a packaged ablation")
    made.add_argument("--out", type=Path, metavar="DIR", help="(ablations/NAME)")
    made.add_argument("--jobs", type=int, metavar="N", help="runs at a time (1)")
    made.add_argument("--limit", type=int, metavar="N", help="train at most N runs now")
    made.add_argument("--only", metavar="NAME", help="only the runs of this subset")
    made.add_argument("--only_task", type=int, metavar="I", help="only the run of this number")
    made.add_argument("--render", action="store_true", help="only write the table, train nothing")
    made.add_argument(
        "--slurm", action="store_true", help="write the script of a job array, a run a task"
    )
    job = made.add_argument_group("with --slurm (--jobs: tasks at a time, all if left out)")
    job.add_argument("--gpus", type=int, default=1, help="of a run (1); 0: none")
    job.add_argument("--cpus", type=int, default=4, help="of a run (4)")
    add_job_options(job)
    job.add_argument("--submit", action="store_true", help="call sbatch")
    return made


def main(argv: list[str]) -> int:
    """Trains what has no result yet and writes the table; returns 1 when a run failed."""
    options = arguments().parse_args(argv)
    if options.jobs is not None and options.jobs < 1:
        raise ValueError(f"--jobs is {options.jobs}; give at least 1")
    file = Path(options.file)
    if not file.is_file():
        if not packaged_files("ablation"):
            raise ValueError(f"there is no file {file} (docs/howto/compare.md has an example)")
        file = find(options.file, "ablation")
    out = options.out or Path("ablations") / read_name(file)
    # Paths of keep-lists in it are settings of runs, and a job array names it in full: written in
    # two ways, none of its results would be taken for one of these runs.
    if out.is_absolute() and out.is_relative_to(Path.cwd()):
        out = out.relative_to(Path.cwd())
    with stoppable(signal.SIGTERM, signal.SIGUSR1):
        plan = read_plan(file, out)
        if options.slurm:
            return write_job(options, plan, file, out)
        runner = make_runner(out, options.limit, options.jobs or 1)
        pairs = chosen(plan, options.only, options.only_task)
        status = 0 if options.render else runner.run(pairs)
        if options.only_task is None or not missing(plan, runner):
            files = write_table(plan, runner, out)
            print("\n".join(f"table: {path}" for path in files) or "no run has a result yet")
        return status


def make_runner(out: Path, limit: int | None = None, jobs: int = 1) -> Runner:
    """Returns what runs the pairs: interrupted runs go on, and outcomes of items are kept."""
    return Runner(
        out / "results",
        out / "runs",
        limit,
        jobs,
        command=resumed_command,
        leftover=lambda run_dir: None,
        keep=keep_outcomes,
    )


def resumed_command(pair: Pair, run_dir: Path) -> list[str]:
    """Returns the command line that trains one pair, from its checkpoint if there is one."""
    return [*fit_command(pair, run_dir), "--resume", "auto"]


def keep_outcomes(run_dir: Path, file: Path) -> dict[str, Any]:
    """Copies the outcomes beside the result; returns the evaluations on the way."""
    kept = file.with_suffix(".npz")
    kept.unlink(missing_ok=True)  # perhaps of another configuration
    if (run_dir / FILE).is_file():
        with whole_file(kept) as part:
            shutil.copyfile(run_dir / FILE, part)
    evaluations = history(read_run(run_dir))
    return {"history": evaluations} if evaluations else {}


def chosen(plan: Plan, only: str | None, only_task: int | None) -> list[Pair]:
    """Returns the pairs that are to be run."""
    names = [subset.name for subset in plan.subsets]
    if only is not None and only not in names:
        raise ValueError(f"--only {only}: there are {', '.join(names)}")
    if only_task is not None and not 0 <= only_task < len(plan.pairs):
        raise ValueError(f"--only_task is {only_task}; there are 0 to {len(plan.pairs) - 1}")
    pairs = plan.pairs if only_task is None else [plan.pairs[only_task]]
    return [pair for pair in pairs if only in (None, pair.run)]


def missing(plan: Plan, runner: Runner) -> list[str]:
    """Returns the names of the pairs without a result."""
    return [pair.name for pair in plan.pairs if runner.known(pair) is None]


def write_table(plan: Plan, runner: Runner, out: Path) -> list[Path]:
    """Writes the table of what there is, in three forms; nothing without any result."""
    records, outcomes = {}, {}
    for pair in plan.pairs:
        record, file = runner.known(pair), runner.file(pair).with_suffix(".npz")
        if record is not None:
            records[pair.run, pair.seed] = record
            outcomes[pair.run, pair.seed] = read_outcomes(file) if file.is_file() else {}
    if not records:
        return []
    table = make_table(plan, Results(records, outcomes))
    files = [out / f"table.{kind}" for kind in ("json", "md", "html")]
    write_json(files[0], table)
    write_whole(files[1], render_markdown(table))
    write_whole(files[2], render_page(table))
    return files


def write_job(options: argparse.Namespace, plan: Plan, file: Path, out: Path) -> int:
    """Writes the script of a job array, and submits it with `--submit`."""
    for name in ("only", "only_task", "limit", "render"):
        value = getattr(options, name)
        if value is not None and value is not False:
            raise ValueError(f"--{name} says nothing to --slurm, whose array has all runs; drop it")
    check_time(options.time)
    check_least(options, gpus=0, cpus=1, grace=1)
    out = out.absolute()
    last = len(plan.pairs) - 1
    command = ["counterpoint", "ablate", str(file.absolute()), "--out", str(out)]
    values = vars(options) | {
        "name": re.sub(r"[^\w.-]+", "-", plan.name),
        "array": f"0-{last}" + (f"%{options.jobs}" if options.jobs else ""),
        "gpus": options.gpus or None,
        "out": shlex.quote(str(out)),
        "workdir": shlex.quote(str(Path.cwd())),
        "venv": options.venv and shlex.quote(str(Path(options.venv).absolute())),
        "command": " \\\n    ".join(groups(command)),
    }
    text = fill("ablation.sbatch", values, {"sbatch": options.sbatch, "setup": options.setup})
    path = out / "ablation.sbatch"
    write_script(path, text, out)
    print(f"{path}: {len(plan.pairs)} tasks, a run each")
    if not options.submit:
        print(f"read it, then submit it: sbatch {shlex.quote(str(path))}")
    return submit(path) if options.submit else 0
