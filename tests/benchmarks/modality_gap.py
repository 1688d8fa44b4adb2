"""How far apart a run's pictures and captions lie, and how evenly: what several papers promise.

Run from the repository, with `emoji/` made: `PYTHONPATH=tests .venv/bin/python -m
benchmarks.modality_gap RUN_DIR ...`. Measured on the held-out emoji, on the towers' output:

the mean length of pictures and captions, and the measures of the task `ModalityGeometry`.
Lower is closer, and more even. Printed as Markdown, with the held-out top-1 beside it.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from counterpoint.launch.config.suites import load_suite
from counterpoint.launch.run.env import prepare
from counterpoint.launch.run.load import load_run
from counterpoint.losses.components.similarity import Metric
from counterpoint.train.evaluation.encode import Encoder
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.geometry.modality import ModalityGeometry
from counterpoint.train.evaluation.outcomes import Outcomes
from counterpoint.train.evaluation.suite import Suite

COLUMNS = {
    "length_image": "Length of pictures",
    "length_text": "of captions",
    "modality_gap.length": "Gap",
    "alignment.squared_distance": "Alignment",
    "image_uniformity.nats": "Uniformity of pictures",
    "text_uniformity.nats": "of captions",
}


class Geometry(ModalityGeometry):
    """Those measures, and the lengths of what the towers put out."""

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        """Returns the task's measures, and two more."""
        texts, _, _ = self.pairs(chosen)
        lengths = {
            "length_image": encoder.image_features(self.data, chosen, ".raw"),
            "length_text": encoder.text_features(texts, ".raw"),
        }
        found = {name: float(rows.norm(dim=1).mean()) for name, rows in lengths.items()}
        return {**super().measure(encoder, chosen), **found}


def measured(run_dir: Path, data_root: str | None) -> list[str]:
    """Returns the cells of a run's newest checkpoint."""
    loaded = load_run(run_dir)
    heldout = load_suite("emoji", data_root).tasks["heldout"]

    def run(name: str, task: object, metric: Metric) -> dict[str, float]:
        suite = Suite("emoji", {name: task})  # type: ignore[dict-item]
        return evaluate(loaded.model, suite, loaded.tokenizer, loaded.eval_transform, metric=metric)

    accuracy = run("heldout", heldout, loaded.objective.metric())["emoji/heldout/top1"]
    found = run("pairs", Geometry(data=heldout.data), loaded.objective.metric())
    return [f"{100 * accuracy:.1f}%", *(f"{found[f'emoji/pairs/{name}']:.2f}" for name in COLUMNS)]


def main() -> None:
    """Prints one row a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data_root", help="the folder of `counterpoint data emoji` (./emoji)")
    options = parser.parse_args()
    prepare()
    print(f"| Run | Held-out top-1 | {' | '.join(COLUMNS.values())} |")
    print("| --- |" + " ---: |" * (len(COLUMNS) + 1))
    for run in options.runs:
        print(f"| {run.name} | {' | '.join(measured(run, options.data_root))} |", flush=True)


if __name__ == "__main__":
    main()
