"""How far apart a run's pictures and captions lie, and how evenly: what several papers promise.

Run from the repository: `.venv/bin/python tests/benchmarks/modality_gap.py RUN_DIR ...`. On the
held-out emoji, with features of length one: the gap is the distance between the mean picture and
the mean caption (Liang et al. 2022, Mind the Gap, section 2.1), alignment the mean squared distance
of a picture and its caption, uniformity the logarithm of the mean of exp(-2 d^2) over all pairs of
pictures, or of captions (Wang and Isola 2020, section 4.1): lower is closer and more even. Printed
as Markdown, with the held-out top-1 beside it.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from counterpoint.launch.env import prepare
from counterpoint.launch.load import load_run
from counterpoint.train.checkpoint import newest, step_of
from counterpoint.train.evaluation.encode import Encoder
from counterpoint.train.evaluation.retrieval import Retrieval
from counterpoint.train.evaluation.run import evaluate
from counterpoint.train.evaluation.suite import Suite, load_suite


class Geometry(Retrieval):
    """Gap, alignment and uniformity of features of length one."""

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float]:
        """Returns the measures; nothing of them is a fraction."""
        texts, of_image, _ = self.pairs(chosen)
        image = encoder.images(self.data, chosen).double()
        text = encoder.texts(texts).double()
        of_text = text[torch.tensor([first for first, *_ in of_image])]
        return {
            "gap": float((image.mean(0) - text.mean(0)).norm()),
            "alignment": float((image - of_text).square().sum(1).mean()),
            "uniformity of pictures": uniformity(image),
            "uniformity of captions": uniformity(text),
        }


def uniformity(rows: Tensor) -> float:
    """Returns log mean exp(-2 |x - y|^2) over pairs of different rows."""
    return float(torch.pdist(rows).square().mul(-2).exp().mean().log())


def measured(run_dir: Path, data_root: str | None) -> dict[str, float]:
    """Returns the measures of a run's newest checkpoint and its held-out top-1."""
    module, data, _ = load_run(run_dir, step_of(newest(run_dir)))
    metric = module.objective.metric()
    if metric.form:
        raise ValueError(f"{run_dir} does not rank by the cosine: its features have no length one")
    emoji = load_suite("emoji", data_root)
    tasks = {"heldout": emoji.tasks["heldout"], "pairs": Geometry(emoji.tasks["heldout"].data)}
    suite = Suite("emoji", tasks)
    found = evaluate(module.model, suite, data.tokenizer, data.eval_transform, metric=metric)
    wanted = {"held-out top-1": found["emoji/heldout/top1"]}
    return wanted | {name: found[f"emoji/pairs/{name}"] for name in COLUMNS[1:]}


COLUMNS = ("held-out top-1", "gap", "alignment", "uniformity of pictures", "uniformity of captions")


def main() -> None:
    """Prints one row a run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data_root", help="the folder of `counterpoint data emoji` (./emoji)")
    options = parser.parse_args()
    prepare()
    print(
        "| Run | Held-out top-1 | " + " | ".join(name.capitalize() for name in COLUMNS[1:]) + " |"
    )
    print("| --- |" + " ---: |" * len(COLUMNS))
    for run in options.runs:
        found = measured(run, options.data_root)
        cells = [f"{100 * found[COLUMNS[0]]:.1f}%", *(f"{found[name]:.2f}" for name in COLUMNS[1:])]
        print(f"| {run.name.rpartition('-')[0]} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
