"""Seconds of a training step in two checkouts, such as a change and the commit before it.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.steps_of_checkouts OLD NEW`,
each a checkout with an environment of its own (`git worktree add OLD COMMIT && make -C OLD`). Both
train the short run on the emoji for some steps, in turns, round by round, so that a noisy machine
disturbs both alike; a round's figure is the median step, the ratio is the median of the rounds'
ratios. Printed as Markdown.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

SAMPLES, BATCH, LOG_EVERY, WARM = 7680, 128, 5, 10


def seconds(checkout: Path, folder: Path, config: str, number: int) -> float:
    """The median step of one run, without its first ones."""
    run = folder / f"{checkout.name}-{number}"
    settings = {
        "run_dir": run,
        "phases.train.samples": SAMPLES,
        "phases.train.warmup_samples": 0,
        "evaluation.suite": "null",
        "data.num_workers": 0,
        "trainer.log_every_n_steps": LOG_EVERY,
        "checkpoint.every_n_steps": SAMPLES,
    }
    words = [f"--{key}={value}" for key, value in settings.items()]
    command = [str(checkout / ".venv/bin/counterpoint"), "fit", "--config", config, *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(BATCH / row["pairs_per_s"] for row in rows if row["step"] > WARM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=lambda path: Path(path).resolve())
    parser.add_argument(
        "--config", default="emoji_clip_short", help="of a run with a phase `train`"
    )
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        emoji = [str(chosen.checkouts[0] / ".venv/bin/counterpoint"), "data", "emoji", "emoji"]
        subprocess.run(emoji, cwd=folder, check=True, capture_output=True)
        print("| Round | old, s | new, s | new / old |\n| ---: | ---: | ---: | ---: |", flush=True)
        ratios = []
        for number in range(chosen.rounds):
            old, new = (seconds(each, folder, chosen.config, number) for each in chosen.checkouts)
            ratios.append(new / old)
            print(f"| {number + 1} | {old:.4f} | {new:.4f} | {ratios[-1]:.3f} |", flush=True)
        print(f"\nMedian: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
