"""Which sample comes next: integers only.

In: the shards' sample counts (by epoch, where weights are drawn anew) and a seed. Out: for any
position of the endless sample sequence its (epoch, shard, ordinal in the shard). Nothing is stored,
so resuming, another world size or another number of workers cannot change the order.

An epoch of N samples is built in three steps. The shards are permuted and their samples laid end
to end. This line is cut into `lanes` contiguous slices, and position p takes from lane p mod lanes,
so neighbours in a batch come from distant shards while every lane walks through few shards at a
time. Inside a lane, each block of `block` samples is permuted by a keyed Feistel network.

A lane touches the shards under its current block and no others. `Steps.deal` gives every rank
whole lanes as far as it can, so a node needs few shards at a time: `working_set` bounds them.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from ..hashing import mix, seeded
from .counts import EpochCounts, FixedCounts

ROUNDS = 6
# At a boundary neighbouring epochs alternate; more are never in use at once.
EPOCHS_KEPT = 3


@dataclass(frozen=True)
class _Line:
    """One epoch's shards in their order: `order` [shards], `ends` [shards] cumulative counts.

    `counts` [shards] is in the manifest's order.
    """

    order: np.ndarray
    ends: np.ndarray
    counts: np.ndarray


class Plan:
    """The order of samples as a pure function of (counts, seed, lanes, block).

    Args:
        counts: samples of each shard, int64 [shards], or by epoch.
        seed: any integer; another seed is another order.
        lanes: parallel walks through the epoch. Independent of ranks and workers.
        block: samples shuffled together within a lane.

    Raises:
        ValueError: no samples, or lanes or block below 1.
    """

    def __init__(
        self, counts: np.ndarray | EpochCounts, seed: int, lanes: int = 16, block: int = 4096
    ):
        self.counts = counts if isinstance(counts, EpochCounts) else FixedCounts(counts)
        self.num_samples = self.counts.num_samples
        if self.num_samples < 1:
            raise ValueError(
                f"the {len(self.counts.least)} shards hold no samples; nothing to plan"
            )
        if lanes < 1 or block < 1:
            raise ValueError(f"lanes={lanes} and block={block} must be 1 or more")
        self.seed = seed
        self.lanes = lanes
        self.block = block
        self._lines: OrderedDict[int, _Line] = OrderedDict()

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Resolves positions of the endless sequence.

        Args:
            positions: non-negative int64 [n], in any order.

        Returns:
            Epoch, shard and ordinal within the shard, each int64 [n].
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        shards = np.empty_like(positions)
        ordinals = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            rows = epochs == epoch
            shuffled = self._shuffle(offsets[rows], epoch)
            line = self._line(epoch)
            slots = np.searchsorted(line.ends, shuffled, side="right")
            row_shards = line.order[slots]
            shards[rows] = row_shards
            ordinals[rows] = shuffled - line.ends[slots] + line.counts[row_shards]
        return epochs, shards, ordinals

    def lane(self, positions: np.ndarray) -> np.ndarray:
        """Returns the lane, 0..lanes-1, that each position [n] takes from."""
        return np.asarray(positions, dtype=np.int64) % self.num_samples % self.lanes

    def working_set(
        self, num_bytes: np.ndarray, num_nodes: int, batch_size: int
    ) -> tuple[int, int]:
        """Bounds the shards a node needs so that none is fetched twice in an epoch.

        A node reads some lanes (`lanes_of_node`); each reads the shards under the blocks that one
        global batch touches. The bound holds for any step and any order of the shards.

        Args:
            num_bytes: size of each shard, int64 [shards]; 0: unknown, counted as the largest known.
            num_nodes: nodes with equally many consecutive ranks.
            batch_size: a global batch; of several in a run, any may need the most.

        Returns:
            Number of shards, and an upper bound of their bytes.
        """
        spread = self.num_runs(batch_size) * self.lanes / 4
        lanes = lanes_of_node(self.lanes, num_nodes, batch_size, spread)
        return self.at_hand(lanes, num_bytes, batch_size)

    def num_runs(self, num_positions: int) -> int:
        """Returns the most epochs that a run of consecutive positions can touch."""
        return (num_positions + self.num_samples - 2) // self.num_samples + 1

    def at_hand(self, num_lanes: int, num_bytes: np.ndarray, num_positions: int) -> tuple[int, int]:
        """Bounds the shards, and their bytes, that some lanes touch in consecutive positions.

        The rows of one lane lie in whole blocks, which are contiguous on the epoch's line (in two
        pieces where an epoch ends): as many shards as fit into these samples, the smallest first,
        and one at each end of two pieces. Within an epoch two of the four ends are free, and hold
        the shards that come next.
        """
        least = self.counts.least
        counts = np.sort(least[least > 0])
        rows = -(-num_positions // self.lanes) + 1
        span = self.block * (-(-(rows - 1) // self.block) + 1) + rows
        inner = int(np.searchsorted(np.cumsum(counts), span, side="right"))
        num_shards = min(len(counts), num_lanes * (inner + 4))
        if self.num_runs(num_positions) > 2:
            num_shards = len(counts)
        sizes = np.asarray(num_bytes, dtype=np.int64)[least > 0]
        sizes = np.sort(np.where(sizes > 0, sizes, sizes.max()))
        return num_shards, int(sizes[len(sizes) - num_shards :].sum())

    def _line(self, epoch: int) -> _Line:
        """Returns the shard order of an epoch (500,000 shards: some 50 ms, then cached)."""
        if epoch not in self._lines:
            # `mix` is one to one in the values, so that there are no ties and any sort will do.
            counts = self.counts.at(epoch)
            order = np.argsort(mix(np.arange(len(counts)), seeded(self.seed, epoch)))
            self._lines[epoch] = _Line(order, np.cumsum(counts[order]), counts)
            if len(self._lines) > EPOCHS_KEPT:
                self._lines.popitem(last=False)
        return self._lines[epoch]

    def _shuffle(self, offsets: np.ndarray, epoch: int) -> np.ndarray:
        """Maps offsets in an epoch [n] to offsets on its line [n], one to one."""
        rows, lanes = np.divmod(offsets, self.lanes)
        short, num_longer = divmod(self.num_samples, self.lanes)
        starts = lanes * short + np.minimum(lanes, num_longer)
        lengths = short + (lanes < num_longer)
        blocks, inside = np.divmod(rows, self.block)
        firsts = blocks * self.block
        sizes = np.minimum(self.block, lengths - firsts)
        keys = mix(blocks, mix(lanes, seeded(self.seed, epoch, 1)))
        return starts + firsts + permute(inside, sizes, keys)


def lanes_of_node(lanes: int, num_nodes: int, batch_size: int, spread: float) -> int:
    """Bounds the lanes that one of `num_nodes` nodes ever reads when `Steps.deal` deals.

    Sorted by lane, a global batch has lane j at about [j, j+1) * batch_size / lanes, and node i
    takes [i, i+1) * batch_size / num_nodes of it, at any step.

    Args:
        lanes: lanes of the plan (of each source).
        num_nodes: nodes with equally many consecutive ranks.
        batch_size: the global batch.
        spread: samples by which the start of a lane may be off. A run of consecutive positions
            holds lanes/4 samples more or fewer of any first j lanes than its even part.
    """
    return min(lanes, math.ceil(lanes / num_nodes + 2 * spread * lanes / batch_size) + 1)


def permute(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Applies, element by element, the keyed permutation of 0..size-1.

    A balanced Feistel network permutes the next power of four; values that leave 0..size-1 are sent
    through again until they return (cycle walking), on average fewer than four times.

    Args:
        values: int64 [n], each in 0..size-1.
        sizes: int64 [n].
        keys: uint64 [n]; equal keys and sizes mean the same permutation.
    """
    widths = np.ceil(np.log2(np.maximum(sizes, 2)) / 2).astype(np.uint64)
    masks = (np.uint64(1) << widths) - np.uint64(1)
    subkeys = [mix(np.full(len(keys), number), keys) for number in range(ROUNDS)]
    result = values.astype(np.uint64)
    limits = sizes.astype(np.uint64)
    active = np.arange(len(result))
    while len(active):
        width, mask = widths[active], masks[active]
        left, right = result[active] >> width, result[active] & mask
        for subkey in subkeys:
            left, right = right, left ^ (mix(right, subkey[active]) & mask)
        walked = (left << width) | right
        result[active] = walked
        active = active[walked >= limits[active]]
    return result.astype(np.int64)
