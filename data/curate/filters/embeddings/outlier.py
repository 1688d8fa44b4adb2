"""Outlier scores of images by their nearest neighbours in random batches: backdoor detection.

Huang et al., "Detecting Backdoor Samples in Contrastive Language Image Pretraining" (2025), section
4: poisoned images lie apart from all clean ones, in small sparse groups, which local outlier scores
find. With r_k(x) the distance to the nearest neighbour number k + 1, and N(x) the k nearest:

    k_dist  r_k(x)
    slof    mean of r_k(x) / r_k(o) over o in N(x)                  (Schubert et al. 2014)
    lid     -k / sum of log(r(x, o) / r_k(x) + 1e-4) over N(x)      (Amsaleg et al. 2015)
    dao     mean of lid(o) log(r_k(x) / r_k(o)) over N(x)           (Anderberg et al. 2024)
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, GroupFilter, State, numbers, vectors
from ...numerics.fixed_point import check_finite

Method = Literal["k_dist", "slof", "lid", "dao"]
NOT_A_NUMBER = 1000.0  # score of 0 / 0 and x / 0: images that came many times
LEVELS = 1 << 20


@dataclass(frozen=True)
class Outlier(GroupFilter):
    """Writes how far each image lies from others, the higher the farther; keeps all.

    A sample is compared with the others of a random batch, drawn by a hash of the seed and the key,
    in the distance of the embeddings as they are (not of length one). `threshold` then leaves out
    the highest.

    Args:
        image: column of the images' embeddings.
        text: column of the captions' embeddings, which are then among the neighbours; None: images
            only.
        method: k_dist, slof, lid, or dao.
        k: number of neighbours; the paper has 16, and 64 for lid.
        batch: rows of a batch, about; the paper has 2,048. A poisoned share of the pool of p gives
            p times as many poisoned rows a batch: where that is above k, they are each other's
            neighbours and no outliers.
        seed: of the batches.
        as_released: computes what the authors' code does. It takes a neighbour's own distances with
            the one of 0 to itself, so that r_k(o) is one neighbour closer, and it counts neighbours
            without the row itself but looks them up with it, so that of those behind the row in the
            batch the one before is taken.
        column: name of the score.

    Raises:
        ValueError: the batch is too small for `k`.
    """

    image: str = "clip.image"
    text: str | None = None
    method: Method = "dao"
    k: int = 16
    batch: int = 2048
    seed: int = 0
    as_released: bool = False
    column: str = "outlier_score"

    def __post_init__(self):
        if self.k < 1 or self.batch < 4 * self.k:
            raise ValueError(
                f"k={self.k} and batch={self.batch}: k must be at least 1, and a batch at least "
                "four times as large"
            )

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The embeddings."""
        return (self.image,) if self.text is None else (self.image, self.text)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The score."""
        return (self.column,)

    def partial(self, rows: pa.RecordBatch) -> State:
        return {"rows": np.array(rows.num_rows)}

    def finish(self, total: State) -> State:
        return {"batches": np.maximum(total["rows"] // self.batch, 1)}

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        random = mix(numbers(rows, "key"), seeded(self.seed, "outlier"))
        return (random % state["batches"].astype(np.uint64)).astype(np.int64)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        batches = (rows.slice(a, b - a) for a, b in pairwise(starts.tolist()))
        return {self.column: np.concatenate([self._scores(b) for b in batches]).astype(np.float32)}

    def _scores(self, rows: pa.RecordBatch) -> np.ndarray:
        """Returns the scores of a batch, float64 [n]."""
        columns = [check_finite(vectors(rows, n, normalize=False), n) for n in self.reads]
        n, k = rows.num_rows, self.k
        if (n - 1) * len(columns) <= k:
            raise ValueError(
                f"a random batch has {n} rows, too few for {k} neighbours; give a larger batch "
                f"than {self.batch} or a smaller k, or let fewer filters come before this one"
            )
        distance = distances(np.concatenate(columns))
        # A row and its own caption are no neighbours of it.
        own = np.add.outer(np.arange(len(distance)), np.arange(len(columns)) * n) % len(distance)
        near, which = _nearest(distance[:n], own[:n], k)
        radius = near[:, k]
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.method == "k_dist":
                return radius
            if self.method == "lid":
                return _cleaned(lid(near))
            if self.as_released:
                of = np.sort(distance, axis=1)[:, : k + 1]
                which -= (which > own[:n, :1]).astype(np.int64)
                if len(columns) > 1:
                    which -= (which >= own[:n, 1:]).astype(np.int64)
            elif len(columns) == 1:
                of = near
            else:
                of, _ = _nearest(distance, own, k)
            ratio = radius[:, None] / of[which[:, :k], k]
            if self.method == "slof":
                return _cleaned(ratio.mean(1))
            return _cleaned((lid(of)[which[:, :k]] * np.log(ratio)).mean(1))


def distances(points: np.ndarray) -> np.ndarray:
    """Returns the Euclidean distances of all pairs of points [m, d], float64 [m, m].

    Points are rounded to 2^-20 of the largest number among them, so that products are sums of
    integers, which float64 adds up exactly: equal points have the distance 0, and the result does
    not depend on the library or its threads.
    """
    largest = float(np.abs(points).max(initial=0.0))
    unit = 2.0 ** np.ceil(np.log2(largest)) / LEVELS if largest else 1.0
    integers = np.rint(points.astype(np.float64) / unit)
    products = integers @ integers.T
    squares = np.diagonal(products)
    return unit * np.sqrt(squares[:, None] + squares - 2 * products)


def lid(near: np.ndarray) -> np.ndarray:
    """Returns local intrinsic dimensions [n], by maximum likelihood.

    Args:
        near: distances to the k + 1 nearest, ascending [n, k + 1].
    """
    k = near.shape[1] - 1
    return -k / np.log(near[:, :k] / near[:, k:] + 1e-4).sum(1)


def _nearest(distance: np.ndarray, own: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns distances to the k + 1 nearest, ascending, and their numbers, both [n, k + 1].

    Args:
        distance: to all points [n, m].
        own: points that are not counted [n, 1 or 2].
        k: see above.
    """
    others = distance.copy()
    np.put_along_axis(others, own, np.inf, axis=1)
    which = np.sort(np.argpartition(others, k, axis=1)[:, : k + 1], axis=1)
    near = np.take_along_axis(others, which, axis=1)
    # Of equally far ones the first are taken; which of them a partition finds is left open.
    tied = (others <= near.max(1, keepdims=True)).sum(1) > k + 1
    which[tied] = np.argsort(others[tied], axis=1, kind="stable")[:, : k + 1]
    near = np.take_along_axis(others, which, axis=1)
    order = np.argsort(near, axis=1, kind="stable")
    return np.take_along_axis(near, order, axis=1), np.take_along_axis(which, order, axis=1)


def _cleaned(scores: np.ndarray) -> np.ndarray:
    return np.nan_to_num(scores, nan=NOT_A_NUMBER, posinf=NOT_A_NUMBER, neginf=0.0)
