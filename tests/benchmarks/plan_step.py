"""`counterpoint plan` against measured steps on this processor.

Run: `cd tests && OMP_NUM_THREADS=1 ../.venv/bin/python -m benchmarks.plan_step ../emoji`. Runs take
turns, round by round. Each trains some steps on one thread with its own data, and between two steps
the machine is calibrated as `counterpoint plan --measure` does, in short, so that both meet the
same disturbances; the plan is made for the medians of these calibrations and for the captions' real
mean length. Steps are timed by the processor time of the training process, and by the clock;
medians of all but the first ones. Printed as Markdown.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch

from counterpoint.launch.api.training import as_word, build
from counterpoint.launch.config import parser as run_config
from counterpoint.launch.planning.devices import Device, measure
from counterpoint.launch.planning.estimate import Cluster, PhaseEstimate, estimate

WARM, CALIBRATION = 2, 0.05  # steps; seconds of each measurement
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "`emoji_clip_short`": ("emoji_clip_short", {}),
    "`emoji_clip_short`, `chunks: 4`": ("emoji_clip_short", {"model.chunks": 4}),
    "`emoji_flip_short`": ("emoji_flip_short", {}),
    "`emoji_siglip_short`": ("emoji_siglip_short", {}),
    "`emoji_clip_short`, `model: emoji_student`": ("emoji_clip_short", {"model": "emoji_student"}),
    "`emoji_clip_short`, bf16": ("emoji_clip_short", {"trainer.precision": "bf16-mixed"}),
}


class Clock(pl.Callback):
    """Takes the time of steps, by the clock and of this process; calibrates between two of them.

    Args:
        steps: after which the run ends.
    """

    def __init__(self, steps: int) -> None:
        self.steps: list[tuple[float, float]] = []
        self.devices: list[Device] = []
        self._last: tuple[float, float] | None = None
        self._num = steps

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Ends the step before, calibrates, begins the next."""
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.steps.append((now[0] - self._last[0], now[1] - self._last[1]))
        trainer.should_stop = len(self.steps) + 1 >= self._num
        self.devices.append(measure(CALIBRATION))
        self._last = time.perf_counter(), time.process_time()


class Turn(NamedTuple):
    """One run of a round: seconds of a step by the clock and of the processor, and as planned."""

    clock: float
    processor: float
    planned: float


def settings(overrides: dict[str, Any], corpus: Path) -> dict[str, Any]:
    """Returns all that is overridden in a run."""
    common = {"data.manifest": str(corpus / "train.parquet"), "evaluation.suite": "null"}
    common |= {"trainer.precision": "32-true", "trainer.log_every_n_steps": 1}
    return common | {"trainer.peak_tflops": 1.0, "checkpoint.every_n_steps": 10_000} | overrides


def turn(config: str, overrides: dict[str, Any], steps: int) -> Turn:
    """Trains the first steps of a run, and plans them."""
    clock = Clock(steps)
    with tempfile.TemporaryDirectory() as folder:
        made = build(config, overrides, run_dir=Path(folder) / "run", callbacks=[clock])
        made.trainer.fit(made.module, datamodule=made.data)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    tokens = statistics.fmean(row["tokens/real"] for row in rows if "tokens/real" in row)
    phase = planned(config, overrides, median_device(clock.devices[WARM:]), tokens)
    by_clock, processor = (
        statistics.median(each) for each in zip(*clock.steps[WARM:], strict=True)
    )
    parts = {k: round(1e3 * v) for k, v in (phase.seconds | phase.count.seconds).items()}
    print(
        f"{config}: {1e3 * processor:.0f} ms, planned {1e3 * phase.step:.0f}: {parts}",
        file=sys.stderr,
    )
    return Turn(by_clock, processor, phase.step)


def median_device(devices: Sequence[Device]) -> Device:
    """Returns a device of which each number is the median of what was measured."""
    values = [vars(device) for device in devices]

    def middle(found: list[Any]) -> Any:
        if isinstance(found[0], dict):
            return {key: middle([each[key] for each in found]) for key in found[0]}
        is_number = isinstance(found[0], int | float)
        return statistics.median(found) if is_number else found[0]

    return Device(**{key: middle([each[key] for each in values]) for key in values[0]})


def planned(config: str, overrides: dict[str, Any], device: Device, tokens: float) -> PhaseEstimate:
    """Returns the plan of the first phase."""
    words = [config, *(f"--{key}={as_word(value)}" for key, value in overrides.items())]
    parser = run_config.make_parser()
    values = run_config.plain(parser, run_config.parse(parser, words))
    return estimate(values, Cluster(device, 1, 1), tokens).phases[0]


def main() -> None:
    """Measures in rounds, plans, prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path, help="folder that `counterpoint data emoji` made")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default="", help="runs whose names contain this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: run for name, run in RUNS.items() if options.only in name}
    rounds = [
        {n: turn(c, settings(o, options.corpus), options.steps) for n, (c, o) in runs.items()}
        for _ in range(options.rounds)
    ]
    print(
        f"torch {torch.__version__}, one thread, {options.rounds} rounds of {options.steps} steps\n"
    )
    print("| Run | measured, ms (processor) | by the clock | planned, ms | planned / measured |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name in runs:
        turns = [each[name] for each in rounds]
        clock, processor, planned_for = (
            1e3 * statistics.median(x) for x in zip(*turns, strict=True)
        )
        ratio = statistics.median(each.planned / each.processor for each in turns)
        print(
            f"| {name} | {processor:.0f} | {clock:.0f} | {planned_for:.0f} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
