"""The shell script that each node of a job runs: torchrun around `counterpoint fit`.

In: run files, overrides and what the job needs. Out: the script with the run files in it, so that
the nodes need an image and a volume, and nothing of the machine where the job is written.
"""

import argparse
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import yaml

from ...data.order.steps import check_divides
from ...data.workers import cores_for
from ..config import parser as run_config
from ..config.run_files import read
from ..config.staged import parse_stages
from .job_script import check_least, fill, groups
from .results import Pair, settings

LONGEST_NAME = 50  # of 63 that a host's name may have: Kubernetes adds numbers


@cache
def run_parser() -> Any:
    """Returns the parser of runs, which takes seconds to make."""
    return run_config.make_parser()


def parsed(config: str, overrides: list[str], world_size: int) -> Any:
    """Parses a run, so that a mistake is raised now and not when the job has waited for hours.

    Returns the configuration of its first stage; name, folder and trainer are those of all.
    """
    stages = parse_stages(run_parser(), read(["--config", config, *overrides]))
    for stage, run in stages.items():
        of = f"stages.{stage}." if stage else ""
        for name, phase in run.phases.items():
            check_divides(phase.batch_size, world_size, f"{of}phases.{name}.")
    return next(iter(stages.values()))


@dataclass(frozen=True)
class Run:
    """One run of a job.

    Attributes:
        name: of the run.
        run_dir: its folder, by its full path once it is known.
        file: content of the run file, with those of its slots.
        words: overrides.
        cpus: that the ranks of a node need, with their loader workers.
    """

    name: str
    run_dir: str
    file: dict[str, Any]
    words: list[str]
    cpus: int


@dataclass(frozen=True)
class Meeting:
    """How the nodes of a job find one another: shell expressions.

    Attributes:
        head: address of the node that the others turn to.
        rank: number of this node; that of `head` is 0.
        address: of this node.
    """

    head: str
    rank: str
    address: str


def checked(options: argparse.Namespace, tasks: int) -> dict[str, str]:
    """Refuses options that cannot work; returns the volumes' names by path."""
    check_least(options, nodes=1, cpus=1, restarts=0, grace=1)
    if tasks < 1:
        raise ValueError("a node without GPUs needs --tasks, the number of its ranks")
    if options.sweep is not None and options.nodes > 1:
        raise ValueError("each run of a sweep has a node of its own: leave --nodes out")
    volumes = {}
    for volume in options.volume:
        name, _, path = volume.rpartition(":")
        if not name or not path.startswith("/"):
            raise ValueError(f"--volume {volume}: write NAME:PATH, such as data:/data")
        volumes[str(PurePosixPath(path))] = name
    if options.workdir is None:
        options.workdir = next(iter(volumes))
    return volumes


def runs_of(
    options: argparse.Namespace, overrides: list[str], tasks: int, pairs: Sequence[Pair]
) -> tuple[str, list[Run]]:
    """Parses a run, or one a pair of a sweep; returns the name of the job, and them."""
    if options.sweep is None:
        run = read_run(options, options.config, overrides, tasks)
        return run.name, [in_folder(run, options.run_dir or run.run_dir, options.workdir)]
    name = pairs[0].sweep
    folder = PurePosixPath(options.run_dir or f"runs/{name}")
    of_seeds: dict[str, Run] = {}
    runs = []
    for pair in pairs:
        if pair.run not in of_seeds:
            words = [*settings(pair.overrides), *overrides]
            of_seeds[pair.run] = read_run(options, pair.config, words, tasks)
        run = of_seeds[pair.run]
        run = replace(run, name=pair.name, words=[*run.words, f"--seed={pair.seed}"])
        runs.append(in_folder(run, str(folder / pair.name), options.workdir))
    return name, runs


def read_run(options: argparse.Namespace, config: str, overrides: list[str], tasks: int) -> Run:
    """Parses one run."""
    run = parsed(config, overrides, options.nodes * tasks)
    written = read(["--config", config, *overrides])
    words = [option.word for option in written.options if option.name != "run_dir"]
    cpus = tasks * cores_for(run.data.num_workers)
    return Run(run.name, run.run_dir or f"runs/{run.name}", written.tree, words, cpus)


def in_folder(run: Run, run_dir: str, workdir: str) -> Run:
    """Gives a run its folder, by its full path."""
    run_dir = posixpath.normpath(PurePosixPath(workdir) / run_dir)
    return replace(run, run_dir=run_dir, words=[*run.words, f"--run_dir={run_dir}"])


def check_on_volume(runs: Sequence[Run], volumes: Mapping[str, str]) -> str:
    """Returns the path of the volume that holds the run folders; refuses one that none holds."""
    inside = {}
    for run in runs:
        holders = [path for path in volumes if PurePosixPath(run.run_dir).is_relative_to(path)]
        if not holders:
            raise ValueError(
                f"the run folder {run.run_dir} is on no volume and would end with its node: give "
                f"a --run_dir below {' or '.join(volumes)}"
            )
        inside[max(holders, key=len)] = run
    return next(iter(inside))


def script(
    options: argparse.Namespace,
    name: str,
    runs: Sequence[Run],
    tasks: int,
    meeting: Meeting,
    index: str,
) -> list[str]:
    """Returns the lines of the script.

    Args:
        options: of the launcher.
        name: of the job.
        runs: one, or several of which a node takes that of its number.
        tasks: ranks of a node.
        meeting: how nodes find one another, if there are several.
        index: shell expression of the number of a node's run, if there are several.
    """
    world, met = "--standalone", []
    if options.nodes > 1:
        met = fill("meeting.sh", vars(meeting), {}).splitlines()
        world = (
            f"--nnodes={options.nodes} --rdzv_backend=c10d --rdzv_id={name} "
            '--rdzv_endpoint="$head:29400" \\\n    --rdzv_conf=is_host=$is_head,read_timeout=600,'
            'join_timeout=3600 --local_addr="$address" \\\n   '
        )
    workdir = shlex.quote(options.workdir)
    values = vars(options) | {"workdir": workdir, "tasks": tasks, "world": world}
    files: dict[str, str] = {}  # by content: one for all seeds of a run
    written: list[str] = []
    chosen: list[str] = []
    for number, run in enumerate(runs):
        text = yaml.safe_dump(run.file, sort_keys=False, allow_unicode=True)
        if text not in files:
            files[text] = f'"$files/{slug(run.name)}.yaml"'
            written += [f"cat > {files[text]} <<'END_OF_FILE'", *text.splitlines(), "END_OF_FILE"]
        words = " \\\n    ".join([f"set -- --config {files[text]}", *groups(run.words)])
        chosen += [f"{number})", *words.split("\n"), ";;"] if options.sweep else words.split("\n")
    if options.sweep:
        chosen = [f"case {index} in", *chosen, "esac"]
    lines = {"setup": options.setup, "files": written, "chosen": chosen, "meeting": met}
    return fill("torchrun.sh", values, lines)[:-1].split("\n")


def slug(name: str) -> str:
    """Returns a name that may be part of a host's: lower-case letters, digits and dashes."""
    short = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return short if short[:1].isalpha() else f"run-{short}".strip("-")
