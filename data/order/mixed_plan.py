"""The plan over several named sources: all as one, or in given proportions.

In: the shards' counts and sources, a seed, shares. Out: as from `Plan`, integers only: for any
position of the endless sequence its (epoch, shard, ordinal in the shard).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..hashing import text_hash
from .counts import EpochCounts, FixedCounts
from .mixture import DENOMINATOR, GROUP, Mixture, listed
from .plan import Plan, lanes_of_node


class MixedPlan:
    """`Plan` over several sources.

    Without shares it is the plan over all shards: every sample once an epoch. With shares each
    source runs through its own endless plan, in epochs of its own; that order depends on the seed
    and the source's name and shards alone, so that adding a source leaves it as it is.

    Args:
        counts: samples of each shard, int64 [shards], or by epoch.
        source_ids: index into `sources` of each shard, int64 [shards].
        sources: names.
        seed: any integer.
        lanes: parallel walks through the epoch (of each source).
        block: samples shuffled together within a lane.
        shares: target share of each source; None: one plan over all shards.

    Raises:
        ValueError: shares name an unknown source, miss one, or favour one that has no samples.
    """

    def __init__(
        self,
        counts: np.ndarray | EpochCounts,
        source_ids: np.ndarray,
        sources: Sequence[str],
        seed: int,
        lanes: int = 16,
        block: int = 4096,
        shares: Mapping[str, float] | None = None,
    ):
        self.counts = counts if isinstance(counts, EpochCounts) else FixedCounts(counts)
        self.lanes = lanes
        self.mixture: Mixture | None = None
        if shares is None:
            self._plans = {0: Plan(self.counts, seed, lanes, block)}
            self._shards = {0: np.arange(len(self.counts.least))}
            return
        _check_names(shares, sources)
        self.mixture = Mixture({name: shares[name] for name in sources}, seed)
        order = np.argsort(source_ids, kind="stable")
        bounds = np.searchsorted(source_ids, np.arange(len(sources) + 1), sorter=order)
        self._plans, self._shards = {}, {}
        for number in map(int, np.flatnonzero(self.mixture.weights)):
            shards = order[bounds[number] : bounds[number + 1]]
            name = sources[number]
            shard_counts = self.counts.of(shards)
            if not shard_counts.num_samples:
                raise ValueError(
                    f"the source '{name}' has a share of {shares[name]:g} but no samples; set its "
                    "share to 0, or keep some of its samples"
                )
            self._shards[number] = shards
            source_seed = text_hash(seed, "source", name)
            self._plans[number] = Plan(shard_counts, source_seed, lanes, block)

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Resolves positions of the endless sequence.

        Args:
            positions: non-negative int64 [n], in any order.

        Returns:
            Epoch (of the source), shard and ordinal within the shard, each int64 [n].
        """
        sources, numbers = self._sources(positions)
        epochs, shards, ordinals = (np.empty_like(numbers) for _ in range(3))
        for source in np.unique(sources).tolist():
            rows = sources == source
            epochs[rows], own_shards, ordinals[rows] = self._plans[source].locate(numbers[rows])
            shards[rows] = self._shards[source][own_shards]
        return epochs, shards, ordinals

    def lane(self, positions: np.ndarray) -> np.ndarray:
        """Returns the lane that each position [n] takes from, 0..lanes * sources - 1.

        The first lanes of all sources come first, then their second ones, so that ranks that take
        neighbouring lanes get a part of every source.
        """
        sources, numbers = self._sources(positions)
        lanes = np.empty_like(numbers)
        for source in np.unique(sources).tolist():
            rows = sources == source
            lanes[rows] = self._plans[source].lane(numbers[rows])
        num_sources = len(self.mixture.names) if self.mixture else 1
        return lanes * num_sources + sources

    def reads(self, source: str) -> bool:
        """Whether a source is read: its share is not 0."""
        if self.mixture is None:
            return True
        return bool(self.mixture.weights[self.mixture.names.index(source)])

    def working_set(
        self, num_bytes: np.ndarray, num_nodes: int, batch_size: int
    ) -> tuple[int, int]:
        """Bounds the shards a node needs: `Plan.working_set`, summed over the sources."""
        num_bytes = np.asarray(num_bytes, dtype=np.int64)
        parts = {source: batch_size for source in self._plans}
        if self.mixture:
            shares = self.mixture.weights / DENOMINATOR
            for source in parts:
                parts[source] = min(batch_size, math.ceil(batch_size * shares[source]) + GROUP)
        runs = sum(plan.num_runs(parts[source]) for source, plan in self._plans.items())
        lanes = lanes_of_node(self.lanes, num_nodes, batch_size, runs * self.lanes / 4)
        needs = [
            plan.at_hand(lanes, num_bytes[self._shards[source]], parts[source])
            for source, plan in self._plans.items()
        ]
        return sum(shards for shards, _ in needs), sum(size for _, size in needs)

    def _sources(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the source and the position in its own plan, each int64 [n]."""
        positions = np.asarray(positions, dtype=np.int64)
        if self.mixture is None:
            return np.zeros_like(positions), positions
        return self.mixture.locate(positions)


def _check_names(shares: Mapping[str, float], sources: Sequence[str]) -> None:
    """Raises a ValueError unless the shares name each source."""
    unknown = [name for name in shares if name not in sources]
    if unknown:
        raise ValueError(
            f"the shares name {listed(unknown)}, which the manifest does not have; its sources "
            f"are {listed(sources)}"
        )
    missing = [name for name in sources if name not in shares]
    if missing:
        raise ValueError(
            f"the shares miss the manifest's {listed(missing)}; give each a share, 0 to leave it "
            "out"
        )
