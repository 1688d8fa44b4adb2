"""A random part of the pool: what curated subsets of the same size are compared with."""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, Filter, State, numbers
from ...numerics.sparse import add_counts, count

BIN_BITS = 20


@dataclass(frozen=True)
class RandomSubset(Filter):
    """Keeps samples whose hash of seed and key is low.

    Of one seed a smaller subset lies within a larger one: a second such filter in a curation needs
    another seed, or it keeps all of a subset that is small enough already. A key that
    comes twice is kept twice or not at all.

    Args:
        fraction: of the samples that reach this filter.
        samples: so many of them. Hashes are counted in 2^20 bins, of which whole ones are kept, so
            that about a millionth of the pool more may stay.
        pool_fraction: as many as this part of the whole pool, whatever earlier filters have left.
        seed: another seed keeps others.

    Raises:
        ValueError: not one of the three is given, or it keeps nothing.
    """

    fraction: float | None = None
    samples: int | None = None
    pool_fraction: float | None = None
    seed: int = 0

    def __post_init__(self):
        if [self.fraction, self.samples, self.pool_fraction].count(None) != 2:
            raise ValueError(
                f"RandomSubset has fraction={self.fraction}, samples={self.samples}, "
                f"pool_fraction={self.pool_fraction}: give one of them, and null for the others"
            )
        for name in ("fraction", "pool_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name}={value} is not above 0 and at most 1")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples={self.samples} keeps none; give 1 or more")

    reads = ()

    def for_pool(self, num_samples: int) -> "RandomSubset":
        if self.pool_fraction is None:
            return self
        samples = max(1, round(self.pool_fraction * num_samples))
        return replace(self, samples=samples, pool_fraction=None)

    @property
    def reduces(self) -> bool:
        """Only a number of samples needs all of them."""
        return self.samples is not None

    def partial(self, rows: pa.RecordBatch) -> State:
        return count(self._bins(rows))

    def merge(self, one: State, other: State) -> State:
        return add_counts(one, other)

    def finish(self, total: State) -> State:
        """Returns the last bin that is kept, so that no fewer than `samples` are."""
        assert self.samples is not None
        ends = np.cumsum(total["counts"])
        if ends[-1] < self.samples:
            raise ValueError(
                f"RandomSubset: {ends[-1]:,} samples reach it, fewer than samples={self.samples:,} "
                "(or that part of the pool); ask for less, or loosen the filters before it"
            )
        return {"last": total["values"][np.searchsorted(ends, self.samples)]}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        if self.fraction is None:
            return {"keep": self._bins(rows) <= state["last"]}
        return {"keep": (self._draws(rows) >> np.uint64(11)) / float(1 << 53) < self.fraction}

    def _bins(self, rows: pa.RecordBatch) -> np.ndarray:
        return (self._draws(rows) >> np.uint64(64 - BIN_BITS)).astype(np.int64)

    def _draws(self, rows: pa.RecordBatch) -> np.ndarray:
        return mix(numbers(rows, "key"), seeded(self.seed, "subset"))
