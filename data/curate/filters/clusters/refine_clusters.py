"""Clusters with almost the same centre become one.

Liang et al., "Dynamic cluster data sampling for efficient and long-tail-aware vision-language
pre-training" (DynamiCS, 2026), refinement after clustering, as its code does it: centres are taken
in the order of their numbers, one whose cosine with a centre taken before reaches the threshold is
dropped, and samples go to the nearest of the centres that are left.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...base import Columns, Filter, State, integers, vectors
from ...numerics.fixed_point import check_finite
from ...numerics.similarity import BLOCK, lengths, nearest, rounded
from ...numerics.sparse import add_counts, count


@dataclass(frozen=True)
class RefineClusters(Filter):
    """Writes the cluster of each sample after centres too near another one are dropped.

    Args:
        centres: `centres.safetensors` of the folder that `counterpoint cluster` wrote.
        threshold: cosine of two centres from which the later one is dropped.
        cluster: column with the clusters.
        embedding: column with the embeddings of which the centres are.
        writes_to: name of the new column.

    Raises:
        ValueError: the threshold is no cosine.
    """

    centres: Path
    threshold: float = 0.70
    cluster: str = "clusters.id"
    embedding: str = "dino.image"
    writes_to: str = "cluster"

    def __post_init__(self):
        if not -1 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold} is no cosine above -1")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Cluster and embedding."""
        return (self.cluster, self.embedding)

    @property
    def writes(self) -> tuple[str, ...]:  # type: ignore[override]
        """The new column."""
        return (self.writes_to,)

    def files(self) -> Sequence[Path]:
        return (Path(self.centres),)

    def partial(self, rows: pa.RecordBatch) -> State:
        return count(integers(rows, self.cluster))

    def merge(self, one: State, other: State) -> State:
        return add_counts(one, other)

    def finish(self, total: State) -> State:
        centres = read_centres(Path(self.centres))
        if (last := int(total["values"].max())) >= len(centres):
            raise ValueError(
                f"{self.cluster} has the cluster {last}, and '{self.centres}' only {len(centres)} "
                "centres; give the file that was written with that column"
            )
        return {"kept": distinct(centres, self.threshold)}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        centres = read_centres(Path(self.centres))
        cluster = integers(rows, self.cluster).astype(np.int64)
        moved = np.flatnonzero(~np.isin(cluster, state["kept"]))
        if len(moved):
            # The nearest of all centres is still the nearest where it is left.
            embeddings = mean_vectors(rows.take(pa.array(moved)), self.embedding, centres.shape[1])
            cluster[moved] = state["kept"][nearest(rounded(embeddings), centres[state["kept"]])]
        return {self.writes_to: cluster}


def distinct(centres: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the numbers of the rounded centres [m, d] that stay, sorted; int64.

    One stays if its cosines with those that stay before it are all below the threshold.
    """
    size = lengths(centres)
    kept = np.zeros(len(centres), dtype=bool)
    for first in range(0, len(centres), BLOCK):
        block, own = centres[first : first + BLOCK], size[first : first + BLOCK]
        before = np.flatnonzero(kept)
        far = np.ones(len(block), dtype=bool)
        if len(before):
            far = (block @ centres[before].T / size[before]).max(1) < threshold * own
        cosines = block @ block.T / own
        for at in np.flatnonzero(far):
            inside = kept[first : first + at]
            kept[first + at] = not (cosines[at, :at][inside] >= threshold * own[at]).any()
    return np.flatnonzero(kept)


def read_centres(path: Path) -> np.ndarray:
    """Returns the rounded centres of a file, float32 [m, d]; a process reads it once.

    Raises:
        ValueError: it cannot be read, or holds something else.
    """
    try:
        return _rounded_centres(path, path.stat().st_mtime_ns)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"'{path}' holds no centres of clusters ({error}); give centres.safetensors of the "
            "folder that counterpoint cluster wrote"
        ) from error


@functools.lru_cache(maxsize=1)
def _rounded_centres(path: Path, _changed: int) -> np.ndarray:
    centres = load_file(path)["centres"].float().numpy()
    if centres.ndim != 2 or not np.isfinite(centres).all():
        raise ValueError(
            f"centres of the shape {list(centres.shape)}, or numbers that are not finite"
        )
    return rounded(centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(min=1e-12))


def mean_vectors(rows: pa.RecordBatch, name: str, width: int) -> np.ndarray:
    """Returns embeddings of a width, unit float32 [n, width]; of several variants, their mean.

    Raises:
        ValueError: they have another width, or a number is not finite.
    """
    values = check_finite(vectors(rows, name, normalize=False), name)
    if values.shape[1] % width:
        raise ValueError(
            f"{name} has {values.shape[1]} dimensions, and the centres of the clusters {width}; "
            "give the embeddings that were clustered"
        )
    variants = values.reshape(len(values), -1, width)
    variants = variants / np.linalg.norm(variants, axis=2, keepdims=True).clip(min=1e-12)
    mean = variants.mean(1)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(min=1e-12)
