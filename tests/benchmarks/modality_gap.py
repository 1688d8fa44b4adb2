"""How far apart a run's pictures and captions lie, and how evenly: what several papers promise.

Run from the repository, with `emoji/` made: `PYTHONPATH=tests .venv/bin/python -m
benchmarks.modality_gap RUN_DIR ...`. Measured on the held-out emoji, on the towers' output:

- the mean length of pictures and captions; then, at length one,
- the gap: the distance between the mean picture and the mean caption (Liang et al. 2022, Mind the
  Gap, section 2.1);
- alignment: the mean squared distance of a picture and its caption;
- uniformity: log mean exp(-2 d^2) over pairs of pictures, or of captions (Wang and Isola 2020,
  Understanding Contrastive Representation Learning, section 4.1).

Lower is closer, and more even. Printed as Markdown, with the held-out top-1 beside it.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from counterpoint.launch.config.suites import load_suite
from counterpoint.launch.run.env import prepare
from counterpoint.launch.run.load import load_run
from counterpoint.losses.components.similarity import Dot, Metric
from counterpoint.train.evaluation.encode import Encoder
from counterpoint.train.evaluation.evaluate import evaluate
from counterpoint.train.evaluation.retrieval import Retrieval
from counterpoint.train.evaluation.suite import Suite

COLUMNS = {
    "length_image": "Length of pictures",
    "length_text": "of captions",
    "gap": "Gap",
    "alignment": "Alignment",
    "uniformity_image": "Uniformity of pictures",
    "uniformity_text": "of captions",
}


class Geometry(Retrieval):
    """The measures above, of features as they are; none is a fraction."""

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float]:
        """Returns one number a column."""
        texts, of_image, _ = self.pairs(chosen)
        image, text = encoder.images(self.data, chosen).double(), encoder.texts(texts).double()
        image, text = (rows * rows.shape[1] ** 0.5 for rows in (image, text))  # undoes Dot's
        lengths = {"length_image": image, "length_text": text}
        found = {name: float(rows.norm(dim=1).mean()) for name, rows in lengths.items()}
        image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
        own = text[torch.tensor([first for first, *_ in of_image])]
        return found | {
            "gap": float((image.mean(0) - text.mean(0)).norm()),
            "alignment": float((image - own).square().sum(1).mean()),
            "uniformity_image": uniformity(image),
            "uniformity_text": uniformity(text),
        }


def uniformity(rows: Tensor) -> float:
    """Returns log mean exp(-2 |x - y|^2) over pairs of different rows."""
    return float(torch.pdist(rows).square().mul(-2).exp().mean().log())


def measured(run_dir: Path, data_root: str | None) -> list[str]:
    """Returns the cells of a run's newest checkpoint."""
    loaded = load_run(run_dir)
    heldout = load_suite("emoji", data_root).tasks["heldout"]

    def run(name: str, task: Retrieval | object, metric: Metric) -> dict[str, float]:
        suite = Suite("emoji", {name: task})  # type: ignore[dict-item]
        return evaluate(loaded.model, suite, loaded.tokenizer, loaded.eval_transform, metric=metric)

    accuracy = run("heldout", heldout, loaded.objective.metric())["emoji/heldout/top1"]
    found = run("pairs", Geometry(heldout.data), Metric(Dot()))
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
