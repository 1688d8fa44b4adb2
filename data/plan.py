"""Which sample comes next: integers only.

In: the shards' sample counts and a seed. Out: for any position of the endless sample sequence its
(epoch, shard, ordinal in the shard). Nothing is stored per sample and nothing is remembered, so
resuming, another world size or another number of workers cannot change the order.

An epoch of N samples is built in three steps. The shards are permuted and their samples laid end
to end. This line is cut into `lanes` contiguous slices, and position p takes from lane p mod lanes,
so neighbours in a batch come from distant shards while every lane walks through few shards at a
time. Inside a lane, each block of `block` samples is permuted by a keyed Feistel network.
"""

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from .hashing import mix, seeded

ROUNDS = 6
# Neighbouring epochs are asked for in turn at a boundary; more are never in use at once.
EPOCHS_KEPT = 3


@dataclass(frozen=True)
class _Line:
    """One epoch's shards in their order: `order` [shards], `ends` [shards] cumulative counts."""

    order: np.ndarray
    ends: np.ndarray


class Plan:
    """The order of samples as a pure function of (counts, seed, lanes, block).

    Args:
        counts: Samples of each shard, int64 [shards].
        seed: Any integer; another seed is another order.
        lanes: Parallel walks through the epoch. Independent of ranks and workers.
        block: Samples shuffled together within a lane.

    Raises:
        ValueError: No samples, or lanes or block below 1.
    """

    def __init__(self, counts: np.ndarray, seed: int, lanes: int = 16, block: int = 4096):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.num_samples = int(self.counts.sum())
        if self.num_samples < 1:
            raise ValueError(f"the {len(self.counts)} shards hold no samples; nothing to plan")
        if lanes < 1 or block < 1:
            raise ValueError(f"lanes={lanes} and block={block} must be 1 or more")
        self.seed = seed
        self.lanes = lanes
        self.block = block
        self._lines: OrderedDict[int, _Line] = OrderedDict()

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Resolves positions of the endless sequence.

        Args:
            positions: Non-negative int64 [n], in any order.

        Returns:
            Epoch, shard and ordinal within the shard, each int64 [n].
        """
        positions = np.asarray(positions, dtype=np.int64)
        epochs, offsets = np.divmod(positions, self.num_samples)
        shards = np.empty_like(positions)
        ordinals = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            places = self._shuffle(offsets[here], epoch)
            line = self._line(epoch)
            slots = np.searchsorted(line.ends, places, side="right")
            found = line.order[slots]
            shards[here] = found
            ordinals[here] = places - line.ends[slots] + self.counts[found]
        return epochs, shards, ordinals

    def _line(self, epoch: int) -> _Line:
        """Returns the shard order of an epoch (500,000 shards: about 0.1 s, then remembered)."""
        if epoch not in self._lines:
            keys = mix(np.arange(len(self.counts)), seeded(self.seed, epoch))
            order = np.argsort(keys, kind="stable")
            self._lines[epoch] = _Line(order, np.cumsum(self.counts[order]))
            if len(self._lines) > EPOCHS_KEPT:
                self._lines.popitem(last=False)
        return self._lines[epoch]

    def _shuffle(self, offsets: np.ndarray, epoch: int) -> np.ndarray:
        """Maps offsets in an epoch [n] to places on the line [n], one to one."""
        rows, lanes = np.divmod(offsets, self.lanes)
        short, num_longer = divmod(self.num_samples, self.lanes)
        starts = lanes * short + np.minimum(lanes, num_longer)
        lengths = short + (lanes < num_longer)
        blocks, inside = np.divmod(rows, self.block)
        firsts = blocks * self.block
        sizes = np.minimum(self.block, lengths - firsts)
        keys = mix(blocks, mix(lanes, seeded(self.seed, epoch, 1)))
        return starts + firsts + permute(inside, sizes, keys)


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
