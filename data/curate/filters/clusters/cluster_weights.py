"""Weights by the size of clusters: large ones shrink, small ones grow, their order stays.

Liang et al., "Dynamic cluster data sampling for efficient and long-tail-aware vision-language
pre-training" (DynamiCS, 2026), cluster scaling: of N samples a cluster of n gets
share * N * n^alpha / sum of all n^alpha, divided equally among its samples.
"""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import Columns, Filter, State, integers
from ...numerics.sparse import add_counts, count


@dataclass(frozen=True)
class ClusterWeights(Filter):
    """Gives each sample the times that it is expected to come in an epoch.

    For `data.keep_weights: {class_path: counterpoint.data.order.selection.Redrawn}`, which draws
    anew in every epoch.

    Args:
        alpha: 1 leaves proportions as they are, 0 makes all clusters equally large, the flat
            balance to which the paper compares.
        share: samples of an epoch by samples of the pool, before `max_weight` takes from it.
        max_weight: times that a sample comes, at most; no limit by default. What the limit takes
            away is given to no other sample.
        cluster: column with the clusters.

    Raises:
        ValueError: a setting is out of range.
    """

    alpha: float = 0.2
    share: float = 0.5
    max_weight: float | None = None
    cluster: str = "cluster"

    writes = ("weight",)

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha}: give 0 (equal clusters) to 1 (as they are)")
        if not 0 < self.share < math.inf:
            raise ValueError(f"share={self.share}: give a number above 0, such as 0.5")
        if self.max_weight is not None and self.max_weight <= 0:
            raise ValueError(f"max_weight={self.max_weight} leaves nothing; give more than 0")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The cluster."""
        return (self.cluster,)

    def partial(self, rows: pa.RecordBatch) -> State:
        return count(integers(rows, self.cluster))

    def merge(self, one: State, other: State) -> State:
        return add_counts(one, other)

    def finish(self, total: State) -> State:
        counts = total["counts"].astype(np.float64)
        scaled = counts**self.alpha
        samples = self.share * counts.sum() * scaled / math.fsum(scaled)
        weights = np.minimum(samples / counts, self.max_weight or np.inf)
        return {"values": total["values"], "weights": weights}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        at = np.searchsorted(state["values"], integers(rows, self.cluster))
        return {"weight": state["weights"][at]}
