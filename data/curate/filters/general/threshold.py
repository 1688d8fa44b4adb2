"""Keeps the samples whose score is high enough, or the best fraction of all.

The quantile is found in one streaming pass: float32 numbers, read as integers of the same order,
are counted by their upper 24 bits, of which scores between 0.1 and 0.4 occupy some 65,000. Memory
depends on how many of these bins are occupied, not on the number of samples.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import Columns, Filter, State, numbers
from ...numerics.sparse import add_counts, count

# Bits of a float32 that are counted together: bins are 2^-15 of the number wide, or less.
DROPPED_BITS = 8
QUANTILES = 101


@dataclass(frozen=True)
class Threshold(Filter):
    """Keeps samples by one number, such as a CLIP score.

    A number that is none (NaN) is left out.

    Args:
        column: the number.
        fraction: of the samples that reach this filter, those with the highest numbers. Within the
            bin of the quantile, a hash of the key decides; so the number of samples is exact but
            for this bin.
        min: the lowest number that is kept.
        max: the highest number that is kept.
        best: which end `fraction` keeps.
        seed: of the choice within the bin; a second fraction of the same column needs another one.

    Raises:
        ValueError: there is neither a fraction nor a limit, or both, or none can fulfil them.
    """

    column: str
    fraction: float | None = None
    min: float | None = None
    max: float | None = None
    best: Literal["highest", "lowest"] = "highest"
    seed: int = 0

    def __post_init__(self):
        limits = self.min is not None or self.max is not None
        if limits == (self.fraction is not None):
            raise ValueError(
                f"Threshold of {self.column} has fraction={self.fraction}, min={self.min}, "
                f"max={self.max}: give fraction, or min and max (one of them or both), and for "
                "what a packaged filter sets otherwise write null"
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} is not above 0 and at most 1")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}, which leaves none")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The number."""
        return (self.column,)

    def partial(self, rows: pa.RecordBatch) -> State:
        values = numbers(rows, self.column)
        return count(_bins(values[~np.isnan(values)]))

    def merge(self, one: State, other: State) -> State:
        return add_counts(one, other)

    def finish(self, total: State) -> State:
        """Returns the counts, the bin of the quantile, and which part of it is kept."""
        bins, counts = total["values"], total["counts"]
        if self.fraction is None or not len(bins):
            return total
        order = slice(None, None, -1 if self.best == "highest" else 1)
        wanted = round(self.fraction * int(counts.sum()))
        before = np.cumsum(counts[order]) - counts[order]
        at = max(int(np.searchsorted(before, wanted)) - 1, 0)
        share = (wanted - before[at]) / counts[order][at]
        return {**total, "bin": np.array(bins[order][at]), "share": np.array(share)}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        values = numbers(rows, self.column)
        keep = ~np.isnan(values)
        if self.fraction is None:
            keep &= (values >= self.min) if self.min is not None else True
            keep &= (values <= self.max) if self.max is not None else True
            return {"keep": keep}
        if "bin" not in state:
            return {"keep": np.zeros(len(values), dtype=bool)}
        bins = _bins(values)
        beyond = bins > state["bin"] if self.best == "highest" else bins < state["bin"]
        draws = mix(numbers(rows, "key"), seeded(self.seed, "threshold", self.column))
        drawn = (draws >> np.uint64(11)) / float(1 << 53) < state["share"]
        return {"keep": keep & (beyond | ((bins == state["bin"]) & drawn))}

    def table(self, state: State) -> pa.Table | None:
        """Returns the number at each hundredth of the samples: `quantile`, `value`."""
        if not len(state["values"]):
            return None
        quantiles = np.linspace(0, 1, QUANTILES)
        ends = np.cumsum(state["counts"])
        at = np.searchsorted(ends, quantiles * ends[-1]).clip(max=len(ends) - 1)
        return pa.table({"quantile": quantiles, "value": _lowest(state["values"][at])})


def _bins(values: np.ndarray) -> np.ndarray:
    """Returns the bin of each number, int64 [n]: higher numbers have the same bin or a higher."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32).astype(np.int64)
    # Of negative numbers the other bits grow downwards.
    return np.where(bits < 0, -(bits & 0x7FFFFFFF) - 1, bits) >> DROPPED_BITS


def _lowest(bins: np.ndarray) -> np.ndarray:
    """Returns the lowest number of each bin, float32 [n]."""
    bits = bins << DROPPED_BITS
    bits = np.where(bits < 0, (-(bits + 1)) | (1 << 31), bits)
    return bits.astype(np.uint32).view(np.float32)
