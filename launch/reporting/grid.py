"""Held-out captions and the images that a model retrieves for them.

`build_grid` takes plain arrays; `pairs_of_run` loads a run, reads a suite and computes features.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_ROWS = 12
NUM_BEST = 5
SIDE = 96  # pixels of an image on the page


@dataclass(frozen=True)
class Hit:
    """One retrieved image: a `data:` address, its similarity, and whether it is correct."""

    image: str
    similarity: float
    correct: bool


@dataclass(frozen=True)
class GridRow:
    """One caption, its best images, and the rank (from 1) of the first correct image."""

    caption: str
    hits: list[Hit]
    rank: int


@dataclass(frozen=True)
class Grid:
    """Rows to show, and the counts over *all* captions."""

    rows: list[GridRow]
    num_captions: int
    num_images: int
    num_first: int  # captions whose first image is correct
    num_best: int  # captions with a correct one among the first NUM_BEST


@dataclass(frozen=True)
class Pairs:
    """Captions [n], images (index -> uint8 [3, H, W]), features [n, d] and [m, d], and the
    indices of the correct images of each caption."""

    captions: Sequence[str]
    image: Callable[[int], np.ndarray]
    caption_features: np.ndarray
    image_features: np.ndarray
    correct: Sequence[Sequence[int]]


def build_grid(pairs: Pairs, num_rows: int = NUM_ROWS, num_best: int = NUM_BEST) -> Grid:
    """Ranks all images for every caption; shows captions at even distances.

    The shown captions depend on their number alone, never on the results.
    """
    num_captions, num_images = len(pairs.captions), len(pairs.image_features)
    shown = {round(i) for i in np.linspace(0, num_captions - 1, min(num_rows, num_captions))}
    rows, ranks = [], []
    for index, caption in enumerate(pairs.captions):
        similarity = pairs.image_features @ pairs.caption_features[index]
        is_right = np.isin(np.arange(num_images), pairs.correct[index])
        assert is_right.any(), f"no right image is given for the caption {caption!r}"
        # As in evaluation: ties and nan count against the model.
        best = similarity[is_right].max()
        ranks.append(1 + int((~(similarity < best) & ~is_right).sum()))
        if index in shown:
            order = np.argsort(-similarity, kind="stable")[:num_best].tolist()
            hits = [
                Hit(png(pairs.image(hit)), float(similarity[hit]), bool(is_right[hit]))
                for hit in order
            ]
            rows.append(GridRow(caption, hits, ranks[-1]))
    num_first, num_within = (sum(rank <= limit for rank in ranks) for limit in (1, num_best))
    return Grid(rows, num_captions, num_images, num_first, num_within)


def png(image: np.ndarray) -> str:
    """Returns uint8 pixels [3, H, W] as a `data:` address."""
    from PIL import Image

    out = io.BytesIO()
    pixels = np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1))
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def thumbnail(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Returns uint8 pixels [3, H, W] shrunk to fit a square of `side`, never enlarged."""
    from PIL import Image

    small = Image.fromarray(np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1)))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.moveaxis(np.asarray(small), -1, 0)


def pairs_of_run(run_dir: Path, suite: str | None) -> Pairs:
    """Loads a run and computes features of the captions and images of a suite's retrieval task.

    Args:
        run_dir: the run; its newest weights are used.
        suite: a suite's name or file; None: the run's own.

    Raises:
        ValueError: there is no such suite, no retrieval in it, no data, or no weights.
    """
    # torch and all that is built on it: a page without images needs none of it.
    import torch

    from ...train.evaluation.encode import Encoder
    from ...train.evaluation.evaluate import untouched
    from ...train.evaluation.retrieval import Retrieval
    from ..config.suites import load_suite
    from ..run.load import load_run

    run = load_run(run_dir)
    evaluation = run.config.get("evaluation") or {}
    in_training = evaluation.get("suite")
    suite = suite or in_training
    if suite is None:
        raise ValueError("the run has no evaluation data (name a suite with --suite)")
    # Another suite has its own data root.
    data_root = evaluation.get("data_root") if suite == in_training else None
    tasks = load_suite(suite, data_root).tasks.values()
    task = next((task for task in tasks if isinstance(task, Retrieval)), None)
    if task is None:
        raise ValueError(f"the suite {suite} has no retrieval task, so no captions with images")
    chosen = task.prepare()
    captions, _, correct = task.pairs(chosen)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, objective = run.model.to(device), run.objective.to(device)
    metric = objective.metric()
    encoder = Encoder(model, run.tokenizer, run.eval_transform, device, metric=metric)
    with untouched(model, device):
        images = encoder.images(task.data, chosen).cpu().numpy()
        texts = encoder.texts(captions).cpu().numpy()

    def image(index: int) -> np.ndarray:
        return thumbnail(task.data.image(int(chosen[index])).numpy())

    return Pairs(captions, image, texts, images, correct)
