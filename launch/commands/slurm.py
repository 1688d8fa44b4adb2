"""`counterpoint launch slurm`: a job script for a SLURM cluster, submitted when asked.

In: a run file, leaf overrides, and what the job needs. Out: `RUN_DIR/job.sbatch`, a commented
script that anybody can read, edit and submit.
"""

import argparse
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from ...data.shards.manifest import Manifest, is_remote
from ...data.workers import cores_for
from ..config import parser as run_config
from ..experiments.job_script import (
    check_least,
    check_time,
    fill,
    groups,
    submit,
    write_script,
)
from ..experiments.torchrun_job import parsed, run_parser
from ..job_arguments import slurm as slurm_options


def main(argv: list[str]) -> int:
    """Writes the script, and submits it with `--submit`; returns the exit status."""
    options, overrides = slurm_options().parse_known_args(argv)
    config = checked(options, overrides)
    run_dir = Path(options.run_dir or config.run_dir or f"runs/{config.name}").absolute()
    overrides = [*overrides, "--run_dir", str(run_dir)]
    if options.cache is not None:
        overrides.append(f"--data.cache.init_args.folder={options.cache}")
    named = [] if options.container is None else named_folders(options.config, config)
    if options.cpus is None:
        options.cpus = cores_for(config.data.num_workers)
    text = render(options, config.name, run_dir, overrides, named)
    path = options.out or run_dir / "job.sbatch"
    write_script(path, text, run_dir)
    print(f"{path}: {options.nodes} x {tasks(options)} tasks")
    if not options.submit:
        print(f"read it, then submit it: sbatch {shlex.quote(str(path))}")
    return submit(path) if options.submit else 0


def checked(options: argparse.Namespace, overrides: list[str]) -> Any:
    """Parses the run, so that a mistake is raised now and not when the job has waited for hours."""
    check_least(options, nodes=1, gpus=0, cpus=1, grace=1)
    check_time(options.time)
    config = parsed(options.config, overrides, options.nodes * tasks(options))
    if options.cache is not None and config.data.cache is None:
        raise ValueError(
            f"--cache {options.cache}: the run reads shards where they are; give it a data.cache "
            "(configs/data/remote.yaml), or leave --cache out"
        )
    return config


def tasks(options: argparse.Namespace) -> int:
    """Returns the number of ranks per node."""
    count = options.gpus if options.tasks is None else options.tasks
    if count < 1:
        raise ValueError("a node without GPUs needs --tasks, the number of its ranks")
    return count


def named_folders(file: str, config: Any) -> set[str]:
    """Folders of a run file and of what it names, shards included, as far as that is there."""
    paths = list(texts(run_config.plain(run_parser(), config)))
    if os.path.isfile(file):
        parts = texts(yaml.safe_load(Path(file).read_text(encoding="utf-8")))
        paths += [file, *(os.path.join(os.path.dirname(file), part) for part in parts)]
    streams = [stream.init_args for stream in (config.data.streams or {}).values()]
    manifests = [data.manifest or [] for data in (config.data, *streams)]  # some have none
    for path in (p for each in manifests for p in ([each] if isinstance(each, str) else each)):
        if os.path.exists(path):
            paths += [url for url in Manifest.load(path).urls if not is_remote(url)]
    existing = {os.path.abspath(path) for path in paths if os.path.exists(path)}
    return {path if os.path.isdir(path) else os.path.dirname(path) for path in existing} - {"/"}


def texts(values: Any) -> Iterator[str]:
    """The texts in nested containers."""
    if isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from texts(value)
    elif isinstance(values, str):
        yield values


def outermost(folders: Iterable[str]) -> list[str]:
    """Leaves out folders that are inside of others."""
    outer: list[str] = []
    for folder in sorted(map(Path, folders)):
        if not any(folder.is_relative_to(other) for other in outer):
            outer.append(str(folder))
    return outer


def render(
    options: argparse.Namespace,
    name: str,
    run_dir: Path,
    overrides: list[str],
    named: Iterable[str],
) -> str:
    """Returns the script; lines whose value is not given are left out.

    A container has to see the folders `named` besides those of the job.
    """
    workdir = Path.cwd()
    config = Path(options.config)
    chosen = str(config.absolute()) if config.is_file() else options.config
    command = ["counterpoint", "fit", "--resume", "auto", "--config", chosen, *overrides]
    srun: list[str] = []
    if options.container is not None:
        of_the_job = [str(workdir), str(run_dir.parent), options.cache or str(workdir)]
        mounts = outermost([*of_the_job, *named])
        if options.container.endswith(".sif"):
            binds = [word for mount in mounts for word in ("--bind", mount)]
            command = ["apptainer", "exec", "--nv", *binds, options.container, *command]
        else:
            pairs = ",".join(f"{mount}:{mount}" for mount in mounts)
            srun = [f"--container-image={options.container}", f"--container-mounts={pairs}"]
            srun.append(f"--container-workdir={workdir}")
    values = {
        **vars(options),
        "name": re.sub(r"[^\w.-]+", "-", name),
        "tasks": tasks(options),
        "gpus": options.gpus or None,
        "run_dir": shlex.quote(str(run_dir)),
        "workdir": shlex.quote(str(workdir)),
        "venv": options.venv and shlex.quote(str(Path(options.venv).absolute())),
        "srun": "".join(f" {shlex.quote(word)}" for word in srun),
        "command": " \\\n    ".join(groups(command)),
    }
    return fill("slurm.sbatch", values, {"sbatch": options.sbatch, "setup": options.setup})
