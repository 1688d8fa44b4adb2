"""`counterpoint launch TARGET`: a job for a cluster, by the module of its target."""

import importlib

from ..job_arguments import check_launcher


def main(argv: list[str]) -> int:
    """Writes the job, and submits it with `--submit`; returns the exit status."""
    return importlib.import_module(f".{check_launcher(argv)}", __package__).main(argv[1:])
