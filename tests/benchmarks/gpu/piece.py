"""One piece of `make gpu` in a process of its own; without a name it prints the machine's facts."""

import argparse
import importlib
import json
import logging
import sys
import warnings
from pathlib import Path

from benchmarks.gpu.report import Report, machine

from counterpoint.launch.run.env import prepare

# Module and arguments of `measure(report, ...)` by piece.
MODULES: dict[str, tuple[str, dict[str, str]]] = {
    "tests": ("marked_tests", {}),
    "losses": ("losses", {}),
    "step-b32": ("train_step", {"name": "ViT-B/32"}),
    "step-b16": ("train_step", {"name": "ViT-B/16"}),
    "step-l14": ("train_step", {"name": "ViT-L/14"}),
    "loader": ("loader", {}),
    "emoji": ("emoji", {}),
    "siglip": ("siglip", {}),
}


def measure(name: str, report: Report) -> None:
    """Measures a piece; an error is noted in the report and raised."""
    module, arguments = MODULES[name]
    try:
        importlib.import_module(f"benchmarks.gpu.{module}").measure(report, **arguments)
    except Exception as error:
        report.fail(error)
        raise


def main() -> None:
    """Measures the piece that is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("piece", nargs="?", choices=MODULES)
    parser.add_argument("path", nargs="?", type=Path)
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--carry", type=Path)
    options = parser.parse_args()
    if options.piece is None:
        print(json.dumps(machine()))
        return
    prepare()
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore")
    report = Report(options.path, options.piece, options.scale, options.seconds, options.carry)
    measure(options.piece, report)


if __name__ == "__main__":
    sys.exit(main())
