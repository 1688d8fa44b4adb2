"""Semantic balance: dense clusters are thinned out, so that no topic outweighs the others.

Yang et al., "CLIP-CID" (2024): clusters of image embeddings. As SemDeDup, with one bound for a
whole cluster in the place of one for every pair, and therefore in linear time.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import Columns, GroupFilter, State, integers, numbers, vectors
from ...numerics.fixed_point import check_finite
from ...numerics.similarity import centre_cosines, rounded
from .semdedup import Prefer, preferred


@dataclass(frozen=True)
class SemanticBalance(GroupFilter):
    """Keeps at most so many samples of a cluster, and one of those that are all but its centre.

    The centre is the mean of the cluster's samples that reach this filter.

    Args:
        at_most: samples of a cluster that stay; all by default.
        threshold: of the samples whose cosine with the centre is above it, only the preferred one
            stays; no such limit by default.
        cluster: column with the clusters.
        embedding: column with the embeddings.
        prefer: what stays: samples far from the centre, near it, or in the order of a hash.
        seed: of the hash, which also orders samples of equal distance.

    Raises:
        ValueError: there is no limit, or it leaves nothing.
    """

    at_most: int | None = None
    threshold: float | None = None
    cluster: str = "clusters.id"
    embedding: str = "clip.image"
    prefer: Prefer = "far"
    seed: int = 0

    def __post_init__(self):
        if self.at_most is None and self.threshold is None:
            raise ValueError("neither at_most nor threshold is given, which keeps all; give one")
        if self.at_most is not None and self.at_most < 1:
            raise ValueError(f"at_most={self.at_most} leaves nothing; give 1 or more")
        if self.threshold is not None and not -1 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no cosine below 1")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Cluster and embedding."""
        return (self.cluster, self.embedding)

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return integers(rows, self.cluster)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        key = numbers(rows, "key")
        keep = np.zeros(len(key), dtype=bool)
        for first, last in itertools.pairwise(starts.tolist()):
            part = self._rows(rows.slice(first, last - first))
            order = preferred(part, key[first:last], self.prefer, self.seed)
            if self.threshold is not None:
                core = centre_cosines(part)[order] > self.threshold
                core[np.flatnonzero(core)[:1]] = False
                order = order[~core]
            keep[first + order[: self.at_most]] = True
        return {"keep": keep}

    def _rows(self, rows: pa.RecordBatch) -> np.ndarray:
        """Returns the embeddings of a cluster, rounded."""
        return rounded(check_finite(vectors(rows, self.embedding), self.embedding))
