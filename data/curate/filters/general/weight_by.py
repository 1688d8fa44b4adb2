"""A column as weight: how often each sample is seen."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...base import WEIGHT, Columns, Filter, State, numbers
from ...numerics.fixed_point import total_of, value_sums


@dataclass(frozen=True)
class WeightBy(Filter):
    """Gives each sample a column's value as weight, scaled; 0 leaves it out.

    Args:
        column: numbers of at least 0: of the score table, a store, or an earlier filter.
        mean: mean weight of all samples; None: see `total`.
        total: sum of all weights, instead of `mean`; with neither the values are taken as they are.
        max: the highest weight after scaling, which lowers mean and total; None: no limit.

    Raises:
        ValueError: `mean` and `total` are both given, or a number is not above 0.
    """

    column: str
    mean: float | None = 1.0
    total: float | None = None
    max: float | None = None

    writes = (WEIGHT,)

    def __post_init__(self):
        if self.mean is not None and self.total is not None:
            raise ValueError(
                f"mean={self.mean} and total={self.total}: give one of them, and null for the other"
            )
        for name in ("mean", "total", "max"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be above 0 and finite")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column."""
        return (self.column,)

    def partial(self, rows: pa.RecordBatch) -> State:
        return value_sums(self._values(rows))

    def finish(self, total: State) -> State:
        present = total_of(total["sums"])
        if not present:
            raise ValueError(f"all values of {self.column} are 0: no sample would have a weight")
        wanted = self.total
        if self.mean is not None:
            wanted = self.mean * float(total["rows"])
        return {"scale": np.array(1.0 if wanted is None else wanted / present)}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        weight = self._values(rows) * state["scale"]
        return {WEIGHT: weight if self.max is None else np.minimum(weight, self.max)}

    def _values(self, rows: pa.RecordBatch) -> np.ndarray:
        values = numbers(rows, self.column).astype(np.float64)
        if not (np.isfinite(values) & (values >= 0)).all():
            wrong = values[~(np.isfinite(values) & (values >= 0))][0]
            raise ValueError(
                f"{self.column} has the value {wrong}, which is no weight: weights are 0 or more"
            )
        return values
