"""How many pairs the runs at 96 px may see in the time of the standard short run.

Run from the repository, with `emoji/` made: `OMP_NUM_THREADS=1 .venv/bin/python
tests/benchmarks/wall_clock_lengths.py`. Short runs of each configuration take turns; the
processor time of a step of each phase, and of an evaluation, are differences between them, medians
of the rounds. Printed as Markdown: the lengths stand in `configs/run/emoji/emoji96_*.yaml`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

STANDARD = "emoji_clip_short"
RUNS = ("emoji96_clip", "emoji96_flip", "emoji96_clipa", "emoji96_aclip", "emoji96_aclip_efficient")
FEW, MANY, BATCH = 6, 30, 128
CONFIGS = Path(__file__).parents[2] / "configs" / "run" / "emoji"


def phases_of(config: str) -> dict[str, int]:
    """Samples of each phase, as the run file has them."""
    content = yaml.safe_load((CONFIGS / f"{config}.yaml").read_text())
    return {name: phase["samples"] for name, phase in content["phases"].items()}


def processor_seconds(config: str, steps: dict[str, int], evaluate_every: int) -> float:
    """Trains so many steps of each phase; returns the processor time of the training process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "counterpoint.launch.cli", "fit", "--config", config]
        command += ["--run_dir", f"{folder}/run"]
        command += ["--evaluation.every_n_steps", str(evaluate_every)]
        for name, number in steps.items():
            command += [f"--phases.{name}.samples", str(number * BATCH)]
            command += [f"--phases.{name}.warmup_samples", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{config} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
        return summary["cpu_seconds_last_process"]


def measure(config: str) -> dict[str, float]:
    """Seconds of a step of each phase, and of an evaluation (the key `""`)."""
    few = dict.fromkeys(phases_of(config), FEW)
    total = sum(few.values())
    base = processor_seconds(config, few, total)  # one evaluation, at the end
    twice = processor_seconds(config, few, total // 2)
    found = {"": twice - base}
    for name in few:
        longer = processor_seconds(config, few | {name: MANY}, total + MANY - FEW)
        found[name] = (longer - base) / (MANY - FEW)
    return found


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rounds = []
    for number in range(options.rounds):
        rounds.append({config: measure(config) for config in (STANDARD, *RUNS)})
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    every = yaml.safe_load((CONFIGS / f"{STANDARD}.yaml").read_text())["evaluation"][
        "every_n_steps"
    ]
    budget = 0.0
    print("| Run | s an evaluation | s a step, by phase | pairs, by phase |")
    print("| --- | ---: | --- | --- |")
    for config in (STANDARD, *RUNS):
        samples = phases_of(config)
        cost = {k: statistics.median(each[config][k] for each in rounds) for k in ("", *samples)}
        pairs = sum(samples.values())
        # An evaluation costs its share of the steps between two of them.
        mean = sum(cost[k] * n for k, n in samples.items()) / pairs + cost[""] / every
        budget = budget or mean * pairs
        scaled = {k: n / pairs * budget / mean for k, n in samples.items()}
        steps = ", ".join(f"{k} {cost[k]:.2f}" for k in samples)
        lengths = ", ".join(f"{k} {n:,.0f}" for k, n in scaled.items())
        print(f"| `{config}` | {cost['']:.1f} | {steps} | {lengths} |")


if __name__ == "__main__":
    main()
