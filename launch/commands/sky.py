"""`counterpoint launch sky`: a task for SkyPilot, submitted as a managed job when asked.

In: a run file and leaf overrides, or a sweep, and what the job needs. Out: a commented task that
anybody can read, edit and submit. SkyPilot has no arrays: the runs of a sweep are one task each,
which differ in the variable RUN.
"""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ..experiments.job_script import fill, submit, write_script
from ..experiments.torchrun_job import (
    Meeting,
    Run,
    check_on_volume,
    checked,
    runs_of,
    script,
    slug,
)
from ..job_arguments import sky as sky_options
from .sweep import read_pairs

COMMAND = ("sky", "jobs", "launch", "--yes", "--detach-run")
MEETING = Meeting(
    head='$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
    rank="$SKYPILOT_NODE_RANK",
    address='$(echo "$SKYPILOT_NODE_IPS" | sed -n "$((rank + 1))p")',
)


def main(argv: list[str]) -> int:
    """Writes the task, and submits it with `--submit`; returns the exit status."""
    options, overrides = sky_options().parse_known_args(argv)
    gpus = re.fullmatch(r"[\w-]+:(\d+)", options.gpus or "CPU:0")
    if gpus is None:
        raise ValueError(f"--gpus {options.gpus}: write KIND:N, such as H100:8")
    if not options.image and not options.setup:
        raise ValueError(
            "say how Counterpoint comes to the nodes: --image IMAGE, or --setup 'pip install ...'"
        )
    tasks = int(gpus[1]) if options.tasks is None else options.tasks
    volumes = checked(options, tasks)
    pairs = read_pairs(options.sweep) if options.sweep else []
    name, runs = runs_of(options, overrides, tasks, pairs)
    holder = check_on_volume(runs, volumes)
    if options.nodes > 1 and "://" in volumes[holder]:
        raise ValueError(
            f"the run folder {runs[0].run_dir} is in the bucket {volumes[holder]}, whose files "
            "other nodes see late: for several nodes give a volume of SkyPilot, NAME:PATH"
        )
    path = options.out or Path(f"{slug(name)}.sky.yaml")
    text = render(options, slug(name), runs, tasks, volumes)
    commands = [COMMAND]
    if options.sweep:
        commands = [(*COMMAND, "--env", f"RUN={number}") for number in range(len(runs))]
    write_script(path, text, path.parent, commands[0])
    print(f"{path}: {options.nodes} nodes x {tasks} processes")
    if not options.submit:
        print("read it, then submit it:")
        print("\n".join(shlex.join([*command, str(path)]) for command in commands))
        return 0
    return max(submit(path, command) for command in commands)


def render(
    options: argparse.Namespace,
    name: str,
    runs: Sequence[Run],
    tasks: int,
    volumes: dict[str, str],
) -> str:
    """Returns the task; lines whose value is not given are left out."""
    cpus = options.cpus or (None if options.gpus else max(run.cpus for run in runs))
    values = {
        **vars(options),
        "name": name,
        "cpus": None if cpus is None else json.dumps(f"{cpus}+"),
        "mem": options.mem and json.dumps(f"{options.mem}+"),
        "infra": options.infra and json.dumps(options.infra),
        "image": options.image and json.dumps(f"docker:{options.image}"),
        "spot": "true" if options.spot else None,
        "envs": '{RUN: "0"}' if options.sweep else None,
        "buckets": mounts(runs, {p: n for p, n in volumes.items() if "://" in n}),
        "volumes": json.dumps({p: n for p, n in volumes.items() if "://" not in n}),
        "has_setup": "|" if options.setup else None,
    }
    if values["volumes"] == "{}":
        values["volumes"] = None
    setup, options.setup = options.setup, []  # a section of its own
    lines = script(options, name, runs, tasks, MEETING, '"$RUN"')
    first = f"# {name}: written by `counterpoint launch sky`. Edit it at will; submit it with\n"
    first += f"# {shlex.join(COMMAND)}.\n"
    return first + fill("sky.yaml", values, {"script": lines, "setup": setup})


def mounts(runs: Sequence[Run], buckets: dict[str, str]) -> str | None:
    """Returns how buckets are mounted, as one line of YAML.

    What is only read is read where it is; a run folder, which is appended to and renamed in, needs
    a copy on the node's disk that is uploaded by and by.
    """
    entries = {}
    for path, source in buckets.items():
        is_written = any(PurePosixPath(run.run_dir).is_relative_to(path) for run in runs)
        entries[path] = {"source": source, "mode": "MOUNT_CACHED" if is_written else "MOUNT"}
    return json.dumps(entries) if entries else None
