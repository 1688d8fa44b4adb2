"""A stretch of spoilt samples, and what clippers and the guard make of it.

Run from the root: `OMP_NUM_THREADS=1 PYTHONPATH=tests .venv/bin/python -m benchmarks.bad_window`,
after `counterpoint data emoji emoji`; `--plot` draws the numbers that are there. In the middle of
short emoji runs at twice the usual learning rate, consecutive steps get captions of
other pictures and pictures of random black and white. All variants of a seed see the same samples.
Numbers go to `docs/results/bad_window.json`, curves to `docs/images/bad_window.svg`.
"""

import argparse
import datetime
import json
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from counterpoint.data.files import write_json
from counterpoint.launch.cli import main as counterpoint
from counterpoint.launch.run.provenance import commit, machine

ROOT = Path(__file__).resolve().parents[2]
OUT, PICTURE = ROOT / "docs/results/bad_window.json", ROOT / "docs/images/bad_window.svg"
BATCH, STEPS, EVERY = 64, 240, 60
BAD = (130, 150)  # steps, if none is passed over
RATE = 2e-3
IMAGE = "--model.image.init_args.model_args"
SMALLER = (f"{IMAGE}.depth=2", f"{IMAGE}.patch_size=18", "--model.text.init_args.depth=2")
TOP1 = "emoji/heldout/top1"

SPIKES = {"window": 64, "warmup": 32, "z": 8.0, "patience": 8}
CLIP = {
    name: str(ROOT / f"configs/grad_clip/{name}.yaml") for name in ("norm", "autoclip", "zclip")
}
VARIANTS: dict[str, dict[str, Any]] = {
    "no bad window": {"grad_clip": CLIP["norm"], "bad": (0, 0)},
    "fixed clip": {"grad_clip": CLIP["norm"]},
    "AutoClip": {"grad_clip": CLIP["autoclip"]},
    "ZClip": {"grad_clip": CLIP["zclip"]},
    "guard, accept": {"grad_clip": CLIP["norm"], "guard": {"spikes": SPIKES}},
    "guard, patient": {"grad_clip": CLIP["norm"], "guard": {"spikes": SPIKES | {"patience": 40}}},
    "guard, rewind": {"grad_clip": CLIP["norm"], "guard": {"spikes": SPIKES | {"then": "rewind"}}},
}


class BadWindow(pl.Callback):
    """Spoils the samples of some positions of the data's order.

    Args:
        first: position.
        end: one past the last.
    """

    def __init__(self, first: int, end: int):
        self.first, self.end = first, end

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """The captions of the next pair; black and white drawn from the step."""
        positions = trainer.datamodule.steps.positions(trainer.global_step)
        if not self.first <= positions[0] < self.end:
            return
        for name in ("text", "text_length"):
            batch[name].copy_(batch[name].roll(1, 0))
        draw = torch.Generator().manual_seed(trainer.global_step)
        image = batch["image"]
        image.copy_(torch.randint(0, 2, image.shape, generator=draw).mul(255))


def run_file(folder: Path, seed: int, variant: Mapping[str, Any]) -> Path:
    """Writes the run file of a variant."""
    configs = ROOT / "configs"
    slots = ("data", "model", "objective", "optim")
    values = yaml.safe_load((configs / "run/emoji/emoji_clip_short.yaml").read_text())
    values |= {slot: str((configs / "run" / "emoji" / values[slot]).resolve()) for slot in slots}
    bad = [step * BATCH for step in variant.get("bad", BAD)]
    spoil = {"class_path": "benchmarks.bad_window.BadWindow"}
    trainer = yaml.safe_load((configs / "trainer/cpu.yaml").read_text())
    values |= {
        "name": "bad_window",
        "seed": seed,
        "trainer": trainer
        | {
            "log_every_n_steps": 1,
            "logger": False,
            "callbacks": [spoil | {"init_args": {"first": bad[0], "end": bad[1]}}],
        },
        "phases": {
            "train": {
                "samples": STEPS * BATCH,
                "batch_size": BATCH,
                "learning_rate": RATE,
                "warmup_samples": STEPS * BATCH // 10,
            }
        },
        "evaluation": {"suite": "emoji", "every_n_steps": EVERY},
        "checkpoint": {"every_n_steps": 10, "keep": 9},
    }
    values |= {slot: variant[slot] for slot in ("grad_clip", "guard") if slot in variant}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def measure(name: str, seed: int) -> dict[str, Any]:
    """Trains one variant; returns its curves and how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = run_file(Path(folder), seed, VARIANTS[name])
        words = ["fit", "--config", str(file), "--run_dir", f"{folder}/run", *SMALLER]
        status = counterpoint(words)
        text = Path(folder, "run/metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    steps = [row for row in rows if "loss" in row]
    tops = [(row["step"], round(row[TOP1], 4)) for row in rows if TOP1 in row]
    return {
        "variant": name,
        "seed": seed,
        "status": status,
        "loss": [round(row["loss"], 4) for row in steps],
        "grad_norm": [round(row["grad_norm"], 4) for row in steps],
        "top1": tops,
        "final_top1": tops[-1][1],
        "final_loss": round(statistics.mean(row["loss"] for row in steps[-20:]), 4),
        "spikes": steps[-1].get("guard/spikes", 0),
        "rewinds": steps[-1].get("guard/rewinds", 0),
        "seconds": round(rows[-1]["wall"], 1),
    }


def record(runs: list[dict[str, Any]]) -> None:
    """Writes what has been measured so far."""
    settings = {"batch": BATCH, "steps": STEPS, "bad": BAD, "learning_rate": RATE, "spikes": SPIKES}
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    head = {"date": date, "commit": commit(), "machine": machine(), "settings": settings}
    write_json(OUT, head | {"runs": runs})


def table(runs: list[dict[str, Any]]) -> str:
    """Final numbers, means over seeds, as Markdown."""
    lines = ["| | Held-out top-1 | Training loss, last 20 steps | Left out | Went back | Seeds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in VARIANTS:
        if not (found := [run for run in runs if run["variant"] == name]):
            continue

        def mean(key: str, found: list[dict[str, Any]] = found) -> float:
            return statistics.mean(run[key] for run in found)

        lines.append(
            f"| {name} | {mean('final_top1'):.1%} | {mean('final_loss'):.3f} | "
            f"{mean('spikes'):.3g} | {mean('rewinds'):.3g} | {len(found)} |"
        )
    return "\n".join(lines)


def plot(runs: list[dict[str, Any]]) -> None:
    """Held-out accuracy and training loss by step, means over seeds."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "bad_window", "font.size": 9}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        losses, tops = figure.subplots(1, 2)
        for name in VARIANTS:
            found = [run for run in runs if run["variant"] == name and run["status"] == 0]
            if not found:
                continue
            style = {"label": name, "linewidth": 1.2}
            style |= {"color": "black", "linestyle": ":"} if name == "no bad window" else {}
            mean = torch.tensor([run["loss"] for run in found]).mean(0)
            losses.plot(range(1, len(mean) + 1), mean, **style)
            steps = [step for step, _ in found[0]["top1"]]
            top = torch.tensor([[value for _, value in run["top1"]] for run in found]).mean(0)
            tops.plot(steps, 100 * top, **style)
        for axes in (losses, tops):
            axes.axvspan(*BAD, color="0.88")
            axes.set_xlabel("step")
            axes.spines[["top", "right"]].set_visible(False)
        losses.set(ylabel="training loss", ylim=(0, 8))
        tops.set_ylabel("held-out top-1 (%)")
        tops.legend(frameon=False, fontsize=8)
        PICTURE.parent.mkdir(exist_ok=True)
        figure.savefig(PICTURE, format="svg", metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measures what is missing, and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--plot", action="store_true", help="measure nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = json.loads(OUT.read_text())["runs"] if OUT.exists() else []
    for seed in [] if options.plot else options.seeds:
        for name in options.only:
            if any((run["variant"], run["seed"]) == (name, seed) for run in runs):
                continue
            runs.append(measure(name, seed))
            record(runs)
            print(table(runs), flush=True)
    plot(runs)
    print(table(runs))


if __name__ == "__main__":
    main()
