"""`counterpoint launch k8s`: a manifest for Kubernetes, submitted when asked.

In: a run file and leaf overrides, or a sweep, and what the job needs. Out: a commented manifest
that anybody can read, edit and submit: an Indexed Job, which any cluster has, and for several nodes
a headless Service through which agents of torchrun find the first of them.
"""

import argparse
import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..experiments.job_script import check_least, fill, submit, write_script
from ..experiments.torchrun_job import (
    Meeting,
    Run,
    check_on_volume,
    checked,
    runs_of,
    script,
    slug,
)
from ..job_arguments import k8s as k8s_options
from .sweep import read_pairs

COMMAND = ("kubectl", "apply", "-f")
MARGIN = 30  # seconds for a pod to end after its ranks have saved


def main(argv: list[str]) -> int:
    """Writes the manifest, and submits it with `--submit`; returns the exit status."""
    options, overrides = k8s_options().parse_known_args(argv)
    check_least(options, gpus=0, tasks=1, jobs=1)
    if options.jobs is not None and options.sweep is None:
        raise ValueError("--jobs is for --sweep: a run alone has all its nodes at once")
    tasks = options.gpus if options.tasks is None else options.tasks
    volumes = checked(options, tasks)
    pairs = read_pairs(options.sweep) if options.sweep else []
    name, runs = runs_of(options, overrides, tasks, pairs)
    check_on_volume(runs, volumes)
    path = options.out or Path(f"{slug(name)}.k8s.yaml")
    write_script(path, render(options, slug(name), runs, tasks, volumes), path.parent, COMMAND)
    pods = len(runs) if options.sweep else options.nodes
    print(f"{path}: {pods} pods x {tasks} processes")
    if not options.submit:
        print(f"read it, then submit it: {shlex.join([*COMMAND, str(path)])}")
    return submit(path, COMMAND) if options.submit else 0


def render(
    options: argparse.Namespace,
    name: str,
    runs: Sequence[Run],
    tasks: int,
    volumes: dict[str, str],
) -> str:
    """Returns the manifest; lines whose value is not given are left out."""
    meeting = Meeting(f"{name}-0.{name}", "$JOB_COMPLETION_INDEX", "$POD_IP")
    lines = script(options, name, runs, tasks, meeting, '"$JOB_COMPLETION_INDEX"')
    limits = {"nvidia.com/gpu": options.gpus} if options.gpus else {}
    memory = {"memory": options.mem} if options.mem else {}
    cpus = options.cpus or max(run.cpus for run in runs)
    pods = len(runs) if options.sweep else options.nodes
    values = {
        "name": name,
        "namespace": options.namespace,
        "labels": labels(options.label),
        "pods": pods,
        "parallelism": min(options.jobs or pods, pods),
        # A pod that fails may take those of the other nodes with it.
        "restarts_of_all": None if options.sweep else options.restarts * options.nodes,
        "restarts_of_each": options.restarts if options.sweep else None,
        "subdomain": name if options.nodes > 1 else None,
        "termination": options.grace + MARGIN,
        "image": json.dumps(options.image),
        "requests": json.dumps({"cpu": cpus} | memory),
        "limits": json.dumps(limits | memory) if limits | memory else None,
    }
    names = {path: f"volume-{number}" for number, path in enumerate(volumes)}
    lists = {
        "script": lines,
        "mount": [json.dumps({"name": names[path], "mountPath": path}) for path in volumes],
        "volume": [
            json.dumps({"name": names[path], "persistentVolumeClaim": {"claimName": claim}})
            for path, claim in volumes.items()
        ],
    }
    first = f"# {name}: written by `counterpoint launch k8s`. Edit it at will; submit it with\n"
    first += (
        f"# {shlex.join(COMMAND)}; `kubectl delete -f` ends it, and leaves what it has saved.\n"
    )
    service = fill("k8s_service.yaml", values, {}) if options.nodes > 1 else ""
    return first + service + fill("k8s.yaml", values, lists)


def labels(given: Sequence[str]) -> str | None:
    """Returns labels KEY=VALUE as one line of YAML."""
    for label in given:
        if not re.fullmatch(r"[\w./-]+=[\w.-]*", label):
            raise ValueError(f"--label {label}: write KEY=VALUE")
    return json.dumps(dict(label.split("=") for label in given)) if given else None
