"""Sources in true proportions: which source a position takes from, and which of its samples.

In: target shares of named sources. Out: for any position its source and its number within that
source's own endless sequence. Nothing is stored: counts of earlier positions follow from a formula.

Shares become integer weights, and a Huffman tree is built over them. At a node of weight d whose
left child has weight a, sample n of the node goes left where floor(n a / d) steps up: so the left
child has floor(n a / d) of the node's first n samples, and the right child the others. Any window
of a node's samples holds the left child's part to within one sample. Down the tree the error is
below 1 + s/P1 + s/P2 + ... for a leaf of share s with ancestors P1 < P2 < ... below the root; a
Huffman tree has P(i+1) >= 1.5 P(i), so it is below 4, and below 2 for up to three sources.

This order is periodic, and ranks that take turns would each get the same source over and over.
So the sources inside each 16 positions are shuffled, which adds at most 16 min(s, 1 - s) samples
at the ends of a window that cuts through such a group. Hence every window of 10,000 samples is
within 10 of its share (large shares sit high in the tree: below 1/3 the sum is 5.4 + 4, at one half
8 + 2), and a window between multiples of 10,000, a multiple of 16, within the tree's bound.
"""

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..hashing import mix, seeded
from .plan import permute

GROUP = 16
# Shares are held in steps of 6e-8: 0.0006 samples in 10,000.
DENOMINATOR = 1 << 24


class Mixture:
    """Maps positions to sources in exact proportions.

    Args:
        shares: target share of the samples by name; normalised. 0 leaves a source out.
        seed: seed of the shuffle inside groups of 16.

    Attributes:
        names: the sources, in the order of `shares`.
        weights: shares in units of 1 / 2^24, int64 [sources].

    Raises:
        ValueError: a share is negative, not a number or too small, or all are 0.
    """

    def __init__(self, shares: Mapping[str, float], seed: int):
        self.names = list(shares)
        self.weights = _weights(shares)
        self.seed = seed
        self._root = _tree(self.weights.tolist())

    @staticmethod
    def temperature(num_samples: Mapping[str, int], temperature: float) -> dict[str, float]:
        """Returns shares proportional to num_samples^(1/temperature).

        1 is the sources' natural proportion; the larger, the more even.

        Args:
            num_samples: samples of each source; one without any gets share 0.
            temperature: above 0.

        Raises:
            ValueError: the temperature is not above 0, or there are no samples.
        """
        largest = max(num_samples.values(), default=0)
        if largest < 1:
            raise ValueError(f"the sources {listed(num_samples)} hold no samples to mix")
        if not temperature > 0:
            raise ValueError(
                f"the mixture's temperature is above 0 (1 keeps the sources' own proportions), not "
                f"{temperature}"
            )
        raw = {
            name: (count / largest) ** (1 / temperature) if count else 0.0
            for name, count in num_samples.items()
        }
        total = sum(raw.values())
        return {name: value / total for name, value in raw.items()}

    def locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns where positions take their samples from.

        Args:
            positions: non-negative int64 [n], in any order.

        Returns:
            Index into `names`, and the number of earlier positions with that source: int64 [n].
        """
        groups, places = np.divmod(np.asarray(positions, dtype=np.int64), GROUP)
        unique, rows = np.unique(groups, return_inverse=True)
        flat = (unique[:, None] * GROUP + np.arange(GROUP)).ravel()
        sources, orders = (part.reshape(-1, GROUP) for part in self._descend(flat))
        keys = np.repeat(mix(unique, seeded(self.seed, "mixture")), GROUP)
        shuffle = permute(flat % GROUP, np.full(len(flat), GROUP), keys).reshape(-1, GROUP)
        shuffled = np.take_along_axis(sources, shuffle, axis=1)
        # The k-th position of a source in the group takes its k-th sample, so that any first n
        # positions use the first samples of every source.
        numbers = np.empty_like(orders)
        ranked = np.take_along_axis(orders, np.argsort(sources, axis=1, kind="stable"), axis=1)
        by_place = np.argsort(shuffled, axis=1, kind="stable")
        np.put_along_axis(numbers, by_place, ranked, axis=1)
        rows = rows.reshape(-1)
        return shuffled[rows, places], numbers[rows, places]

    def _descend(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns source and number within it [n], before the shuffle."""
        sources = np.empty_like(positions)
        orders = np.empty_like(positions)
        waiting: list[tuple[Any, np.ndarray, np.ndarray]] = [
            (self._root, np.arange(len(positions)), positions)
        ]
        while waiting:
            node, rows, numbers = waiting.pop()
            if isinstance(node, int):
                sources[rows], orders[rows] = node, numbers
                continue
            left, right, left_weight, weight = node
            # In two steps, since numbers * left_weight may not fit into 64 bits.
            turns, rest = np.divmod(numbers, weight)
            before = turns * left_weight + rest * left_weight // weight
            goes_left = (rest + 1) * left_weight // weight > rest * left_weight // weight
            goes_right = ~goes_left
            waiting.append((left, rows[goes_left], before[goes_left]))
            waiting.append((right, rows[goes_right], (numbers - before)[goes_right]))
        return sources, orders


def listed(names: Iterable[str]) -> str:
    """Returns names in quotes, for messages."""
    return ", ".join(f"'{name}'" for name in names)


def _weights(shares: Mapping[str, float]) -> np.ndarray:
    """Returns integers that add up to `DENOMINATOR`, by largest remainders."""
    for name, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise ValueError(f"the share of source '{name}' is {share}; give 0 or a larger number")
    total = sum(shares.values())
    if not total > 0:
        raise ValueError(f"the shares of {listed(shares)} are all 0; give one a share above 0")
    exact = np.array([share / total for share in shares.values()]) * DENOMINATOR
    weights = np.floor(exact).astype(np.int64)
    short = DENOMINATOR - int(weights.sum())
    weights[np.argsort(weights - exact, kind="stable")[:short]] += 1
    for name, share, weight in zip(shares, shares.values(), weights.tolist(), strict=True):
        if share > 0 and not weight:
            raise ValueError(
                f"the share {share / total:.1e} of source '{name}' is below {1 / DENOMINATOR:.0e}, "
                "the smallest that can be kept; raise it, or set it to 0 to leave the source out"
            )
    return weights


def _tree(weights: Sequence[int]) -> Any:
    """Returns the root of a Huffman tree: a source, or (left, right, left weight, weight)."""
    heap: list[tuple[int, int, Any]] = [
        (weight, number, number) for number, weight in enumerate(weights) if weight
    ]
    heapq.heapify(heap)
    number = len(weights)
    while len(heap) > 1:
        part, _, left = heapq.heappop(heap)
        other, _, right = heapq.heappop(heap)
        heapq.heappush(heap, (part + other, number, (left, right, part, part + other)))
        number += 1
    return heap[0][2]
