"""A training step of a small student: alone, with a stored teacher, with the teacher itself.

Run from the repository, after `counterpoint fit --config emoji_clip` and `counterpoint embed
--config distill_crd --teacher large --out runs/emoji_clip_store --variants 4`:
`OMP_NUM_THREADS=1 .venv/bin/python tests/benchmarks/store_step.py`. Whole runs (`distill_none`,
`distill_store`, `distill_crd`) with their loaders take turns; a round's figure is the median time
of a run's steps without the first ones, ratios are medians of the rounds' ratios. Printed as
Markdown.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = {
    "alone (`distill_none`)": "distill_none",
    "from a store (`distill_store`)": "distill_store",
    "teacher online (`distill_crd`)": "distill_crd",
}
BATCH, NOT_COUNTED = 128, 5


def step_seconds(config: str, steps: int, folder: Path) -> float:
    """Trains some steps; returns the median seconds of one, by the clock."""
    command = [sys.executable, "-m", "counterpoint.launch.cli", "fit", "--config", config]
    command += ["--run_dir", str(folder), "--trainer.log_every_n_steps", "1"]
    command += ["--phases.train.samples", str(steps * BATCH)]
    command += ["--phases.train.warmup_samples", str(BATCH)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{config} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [row["pairs_per_s"] for row in rows if "pairs_per_s" in row][NOT_COUNTED:]
    return BATCH / statistics.median(rates)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    if options.steps <= NOT_COUNTED:
        raise SystemExit(f"--steps must be more than {NOT_COUNTED}: the first are not counted")
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append(
                {name: step_seconds(c, options.steps, Path(folder, c)) for name, c in RUNS.items()}
            )
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    alone = next(iter(RUNS))
    print(f"batch {BATCH}, {options.rounds} rounds of {options.steps} steps\n")
    print("| Student | ms a step | x alone |\n| --- | ---: | ---: |")
    for name in RUNS:
        seconds = statistics.median(each[name] for each in rounds)
        ratio = statistics.median(each[name] / each[alone] for each in rounds)
        print(f"| {name} | {seconds * 1e3:.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
