"""Semantic balance: dense clusters are thinned out, so that no topic outweighs the others.

Yang et al., "CLIP-CID" (2024): clusters of image embeddings. As SemDeDup, with one bound for a
whole cluster in the place of one for every pair, and therefore in linear time.
"""

from dataclasses import dataclass

import numpy as np

from ...numerics.similarity import centre_cosines
from .semdedup import ClusterFilter


@dataclass(frozen=True)
class SemanticBalance(ClusterFilter):
    """Keeps at most so many samples of a cluster, and one of those that are all but its centre.

    Args:
        at_most: samples of a cluster that stay; all by default.
        threshold: of the samples whose cosine with the centre is above it, only the preferred one
            stays; no such limit by default.

    Raises:
        ValueError: there is no limit, or it leaves nothing.
    """

    at_most: int | None = None
    threshold: float | None = None

    def __post_init__(self):
        if self.at_most is None and self.threshold is None:
            raise ValueError("neither at_most nor threshold is given, which keeps all; give one")
        if self.at_most is not None and self.at_most < 1:
            raise ValueError(f"at_most={self.at_most} leaves nothing; give 1 or more")
        if self.threshold is not None and not -1 <= self.threshold < 1:
            raise ValueError(f"threshold={self.threshold} is no cosine below 1")

    def kept(self, rows: np.ndarray, order: np.ndarray) -> np.ndarray:
        if self.threshold is not None:
            core = centre_cosines(rows)[order] > self.threshold
            core[np.flatnonzero(core)[:1]] = False
            order = order[~core]
        return order[: self.at_most]
