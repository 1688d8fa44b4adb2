"""Semantic duplicates: samples whose embedding is almost that of another one in their cluster.

Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication"
(2023), section 3: the samples of a cluster are ordered by their distance to its centre, and one
that has a cosine above 1 - epsilon with an earlier one is left out.
"""

import itertools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, GroupFilter, State, integers, numbers, vectors
from ...numerics.fixed_point import check_finite
from ...numerics.similarity import centre_cosines, near_earlier, rounded

Prefer = Literal["far", "near", "hash"]


@dataclass(frozen=True, kw_only=True)
class ClusterFilter(GroupFilter):
    """A filter of the samples of each cluster in an order of preference.

    Args:
        cluster: column with the clusters.
        embedding: column with the embeddings.
        prefer: what comes first and stays: samples far from the centre (SemDeDup's choice), near
            it, or in the order of a hash of the key. The centre is the mean of the cluster's
            samples that reach this filter.
        seed: of the hash, which also orders samples of equal distance.
    """

    cluster: str = "clusters.id"
    embedding: str = "clip.image"
    prefer: Prefer = "far"
    seed: int = 0

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Cluster and embedding."""
        return (self.cluster, self.embedding)

    @abstractmethod
    def kept(self, rows: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Returns which of a cluster's rounded rows [n, d] stay, int64 [k]; `order` int64 [n]."""

    def groups(self, rows: pa.RecordBatch, state: State) -> np.ndarray:
        return integers(rows, self.cluster)

    def apply_groups(self, rows: pa.RecordBatch, starts: np.ndarray, state: State) -> Columns:
        key = numbers(rows, "key")
        keep = np.zeros(len(key), dtype=bool)
        for first, last in itertools.pairwise(starts.tolist()):
            # A cluster at a time: in float32 all of them are twice as large.
            part = vectors(rows.slice(first, last - first), self.embedding)
            part = rounded(check_finite(part, self.embedding))
            order = preferred(part, key[first:last], self.prefer, self.seed)
            keep[first + self.kept(part, order)] = True
        return {"keep": keep}


@dataclass(frozen=True)
class SemDeDup(ClusterFilter):
    """Leaves out what has a cosine above 1 - epsilon with an earlier sample of its cluster.

    As in the paper's code an earlier sample counts whether it is kept or not.

    Args:
        epsilon: 1e-5 to 1; the larger, the more is left out. Vectors are rounded to 12 bits, which
            do not tell cosines nearer to 1 from it.

    Raises:
        ValueError: epsilon is out of range.
    """

    epsilon: float = 0.05

    def __post_init__(self):
        if not 1e-5 <= self.epsilon <= 1:
            raise ValueError(f"epsilon={self.epsilon}: give 1e-5 to 1")

    def kept(self, rows: np.ndarray, order: np.ndarray) -> np.ndarray:
        return order[~near_earlier(rows[order], 1 - self.epsilon)]


def preferred(rows: np.ndarray, key: np.ndarray, prefer: Prefer, seed: int) -> np.ndarray:
    """Returns the order of a cluster's rounded rows [n, d], the preferred first; int64 [n]."""
    hashed = mix(key, seeded(seed, "clusters"))
    if prefer == "hash" or len(rows) < 2:
        return np.lexsort((key, hashed))
    cosines = centre_cosines(rows)
    return np.lexsort((key, hashed, cosines if prefer == "far" else -cosines))
