"""The options of `counterpoint launch`, by launcher, and those of every job of SLURM."""

import argparse
from pathlib import Path

from .arguments import Arguments


def slurm() -> Arguments:
    """The options of `counterpoint launch slurm`; all others are the run's."""
    made = Arguments(
        prog="counterpoint launch slurm",
        description="Write a job script for a SLURM cluster. Further options are those of fit.",
    )
    made.add_argument("--config", required=True, help="a run file, or a packaged run's name")
    made.add_argument("--run_dir", help="on a disk that all nodes see (runs/NAME)")
    made.add_argument("--nodes", type=int, default=1)
    made.add_argument("--gpus", type=int, default=8, help="per node (8); 0: none")
    made.add_argument("--tasks", type=int, help="ranks per node (one a GPU)")
    made.add_argument("--cpus", type=int, help="per task (one, and one a loader worker)")
    add_job_options(made)
    made.add_argument("--container", help="image: FILE.sif for Apptainer, else for srun (Pyxis)")
    made.add_argument("--interface", help="network between the nodes, for NCCL and gloo: ib0")
    made.add_argument("--cache", help="folder of remote shards on a disk of each node")
    made.add_argument("--out", type=Path, help="(RUN_DIR/job.sbatch)")
    made.add_argument("--submit", action="store_true", help="call sbatch")
    return made


def add_job_options(made: argparse._ActionsContainer) -> None:
    """Adds what every job of SLURM may ask for."""
    made.add_argument("--mem", help="of a node, such as 200G; 0: all (the cluster's default)")
    made.add_argument("--time", default="24:00:00", help="limit of one start (24:00:00)")
    made.add_argument("--partition")
    made.add_argument("--account")
    made.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="e.g. --sbatch=--qos=high"
    )
    made.add_argument("--grace", type=int, default=180, help="seconds to save before the limit")
    made.add_argument("--venv", help="virtual environment to activate on the nodes")
    made.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="of shell before that, e.g. --setup 'module load cuda' --setup 'conda activate clip'",
    )


def k8s() -> Arguments:
    """The options of `counterpoint launch k8s`; all others are the run's."""
    made = Arguments(
        prog="counterpoint launch k8s",
        description="Write a manifest for Kubernetes: an Indexed Job, one pod a node, or with "
        "--sweep one pod a run. Further options are those of fit.",
    )
    _add_torchrun_options(made, "persistent volume claim")
    made.add_argument("--image", required=True, help="container image with Counterpoint in it")
    made.add_argument("--gpus", type=int, default=8, help="per node (8); 0: none")
    made.add_argument("--mem", help="of a node, such as 200Gi (no limit)")
    made.add_argument("--jobs", type=int, help="runs of a sweep at a time (all)")
    made.add_argument("--namespace", help="(that of kubectl's context)")
    made.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of the Job, e.g. --label kueue.x-k8s.io/queue-name=team",
    )
    made.add_argument("--out", type=Path, help="(NAME.k8s.yaml)")
    made.add_argument("--submit", action="store_true", help="call kubectl apply")
    return made


def sky() -> Arguments:
    """The options of `counterpoint launch sky`; all others are the run's."""
    made = Arguments(
        prog="counterpoint launch sky",
        description="Write a task for SkyPilot, to be run as a managed job. Further options are "
        "those of fit.",
    )
    _add_torchrun_options(made, "SkyPilot volume, or bucket such as s3://NAME")
    made.add_argument("--gpus", metavar="KIND:N", help="per node, such as H100:8 (none)")
    made.add_argument("--mem", type=int, metavar="GB", help="of a node, at least")
    made.add_argument("--image", help="container image with Counterpoint in it")
    made.add_argument("--infra", help="where, such as aws, gcp/us-central1 or k8s (the cheapest)")
    made.add_argument("--spot", action="store_true", help="machines that may be taken back")
    made.add_argument("--out", type=Path, help="(NAME.sky.yaml)")
    made.add_argument("--submit", action="store_true", help="call sky jobs launch")
    return made


def _add_torchrun_options(made: Arguments, volume: str) -> None:
    """Adds what a job whose nodes run torchrun may ask for."""
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a run file, or a packaged run's name")
    what.add_argument("--sweep", metavar="FILE", help="every (config, seed) pair of a sweep")
    made.add_argument("--run_dir", help="on a volume (runs/NAME; of a sweep, that of all runs)")
    made.add_argument("--nodes", type=int, default=1)
    made.add_argument("--tasks", type=int, help="ranks per node (one a GPU)")
    made.add_argument("--cpus", type=int, help="per node (for each rank one, and its workers)")
    made.add_argument(
        "--volume",
        action="append",
        required=True,
        metavar="NAME:PATH",
        help=f"{volume}, and where the nodes see it; may be repeated",
    )
    made.add_argument("--workdir", help="where relative paths start (PATH of the first volume)")
    made.add_argument(
        "--setup", action="append", default=[], metavar="LINE", help="of shell before the run"
    )
    made.add_argument("--interface", help="network between the nodes, for NCCL and gloo: eth0")
    made.add_argument("--restarts", type=int, default=10, help="after failures, at most (10)")
    made.add_argument("--grace", type=int, default=180, help="seconds to save after SIGTERM (180)")


LAUNCHERS = {"slurm": slurm, "k8s": k8s, "sky": sky}


def check_launcher(argv: list[str]) -> str:
    """Returns the launcher's name; answers `launch` without one and exits."""
    asked = argv[0] if argv else ""
    if asked in LAUNCHERS:
        return asked
    if asked not in ("", "-h", "--help"):
        raise ValueError(f"there is no launcher '{asked}'; there are: {', '.join(LAUNCHERS)}")
    names = "|".join(LAUNCHERS)
    print(f"usage: counterpoint launch {names} --config RUN ...   (launch slurm --help: more)")
    raise SystemExit(0 if asked else 2)
