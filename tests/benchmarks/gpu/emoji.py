"""A short emoji run on the GPU: is its curve the CPU's?

In: the emoji shards, carried along or made here. Out: the losses of every step on the CPU and on
the GPU, same seed, same samples, fp32 in both; on the GPU in bf16, too; and how far they are apart.
fp32's differ by rounding at first and drift apart as any two machines do.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import Report

from counterpoint.data.corpora.emoji.corpus import Settings, build_emoji
from counterpoint.launch.api.training import build

STEPS = {"full": 60, "tiny": 4}
BATCH = {"full": 128, "tiny": 16}
EARLY = 10  # steps in which only rounding differs
NAMES = 200  # of the corpus that is made here at a tiny scale


def measure(report: Report) -> None:
    """Trains on the CPU, then on the GPU in fp32 and in bf16."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(report, Path(folder))
        curves: dict[str, list[float]] = {}
        for device, precision in (("cpu", "32-true"), ("gpu", "32-true"), ("gpu", "bf16-mixed")):
            if device == "gpu" and report.device.type == "cpu":
                continue
            named = {"device": device, "precision": precision}
            run_dir = Path(folder) / f"{device}-{precision}"
            row = report.measure(lambda d=run_dir, n=named: train(report, corpus, d, **n), **named)
            curves[f"{device} {precision}"] = row.get("losses", [])
        cpu = curves.pop("cpu 32-true")
        for name, curve in curves.items():
            report.measure(lambda c=curve: difference(cpu, c), compared=name)


def corpus_of(report: Report, folder: Path) -> Path:
    """Returns the folder of the emoji shards: the carried one, else one that is made."""
    if report.carried is not None and (report.carried / "emoji" / "train.parquet").exists():
        return report.carried / "emoji"
    settings = Settings(num_held_out=20, limit=NAMES) if report.scale == "tiny" else Settings()
    build_emoji(folder / "emoji", settings)
    return folder / "emoji"


def train(
    report: Report, corpus: Path, run_dir: Path, device: str, precision: str
) -> dict[str, Any]:
    """Trains the short run for some steps; returns each step's loss."""
    size = BATCH[report.scale]
    overrides = {
        "trainer.accelerator": device,
        "trainer.devices": 1,
        "trainer.precision": precision,
        "trainer.log_every_n_steps": 1,
        "trainer.peak_tflops": 1.0,
        "data.manifest": str(corpus / "train.parquet"),
        "phases.train.samples": size * STEPS[report.scale],
        "phases.train.batch_size": size,
        "phases.train.warmup_samples": size * 4,
        "evaluation.suite": "null",
        "checkpoint.every_n_steps": 10_000,
    }
    made = build("emoji_clip_short", overrides, run_dir=run_dir)
    start = time.perf_counter()
    made.trainer.fit(made.module, datamodule=made.data)
    seconds = time.perf_counter() - start
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    return {"seconds": seconds, "losses": losses}


def difference(cpu: list[float], other: list[float]) -> dict[str, float]:
    """Returns the largest relative differences of two curves: in the first steps, and in all."""
    if len(cpu) != len(other) or not cpu:
        raise ValueError(f"there are {len(cpu)} losses of the CPU and {len(other)} of the GPU")
    apart = [abs(a - b) / abs(a) for a, b in zip(cpu, other, strict=True)]
    return {"early": max(apart[:EARLY]), "all": max(apart), "last": apart[-1]}
