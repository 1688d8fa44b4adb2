"""How many samples of each shard an epoch has.

In: counts of shards, or a list whose weights are drawn anew. Out: the counts of any epoch, and
their sum, which is the same in every epoch: so a position's epoch follows from a division.
"""

from abc import ABC, abstractmethod

import numpy as np


class EpochCounts(ABC):
    """Samples of each shard, by epoch.

    Attributes:
        num_samples: samples of an epoch, of any.
        least: of each shard that has any samples in an epoch, how many it has at least in all but
            a negligible part of the epochs; 0: it has none in any epoch. int64 [shards].
    """

    num_samples: int
    least: np.ndarray

    @abstractmethod
    def at(self, epoch: int, shards: np.ndarray | None = None) -> np.ndarray:
        """Returns the counts of an epoch, int64 [n].

        Args:
            epoch: 0 or more.
            shards: numbers of the shards, int64 [n]; all by default.
        """

    @abstractmethod
    def of(self, shards: np.ndarray) -> "EpochCounts":
        """Returns the counts of the shards of one or several sources, int64 [n], alone."""


class FixedCounts(EpochCounts):
    """The same in every epoch.

    Args:
        counts: samples of each shard, int64 [shards].
    """

    def __init__(self, counts: np.ndarray):
        self.least = np.asarray(counts, dtype=np.int64)
        self.num_samples = int(self.least.sum())

    def at(self, epoch: int, shards: np.ndarray | None = None) -> np.ndarray:
        return self.least if shards is None else self.least[shards]

    def of(self, shards: np.ndarray) -> "FixedCounts":
        return FixedCounts(self.least[shards])
