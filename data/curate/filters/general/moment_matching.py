"""M4: weights under which attributes have their shares, and go with no label.

Alabdulmohsin et al., "CLIP the Bias: How Useful is Balancing Data in Multimodal Learning?" (2024),
section 4: with attributes s_k (such as a perceived gender) whose shares shall be pi_k, and labels
y_r (such as an occupation), find weights q in [0, Q] near their mean that satisfy

    |E q (s_k - pi_k)|      <= eps_R      representation
    |E q (s_k - pi_k) y_r|  <= eps_D      association

Here E q is given, and the weights are those with the least E (q - E q)^2 / 2. With a dual number
for each constraint, q of a sample is a linear function of the products in the constraints, cut off
at 0 and Q: the dual numbers are solved for on a sample of the rows and then serve for all of them.
The authors solve by stochastic updates of the dual numbers, which depend on the order of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ....hashing import mix, seeded
from ...base import WEIGHT, Columns, Filter, State, numbers

TOLERANCE = 1e-6  # of E q and the constraints, on the rows that are solved for
MAX_ITERATIONS = 200
DUAL_STEPS = 1 << 32  # dual numbers are multiples of 2^-32


@dataclass(frozen=True)
class MomentMatching(Filter):
    """Gives each sample a weight between 0 and `max_weight`; 0 leaves it out.

    Args:
        attributes: columns (bool, or numbers from 0 to 1) and the share that each shall have.
        labels: columns (bool, or numbers) with which attributes shall not go together.
        mean: mean weight; with `max_weight` 1 the share of the pool that is kept.
        max_weight: Q.
        eps_r: limit of the constraints of representation.
        eps_d: limit of the constraints of association.
        rows: on how many rows, drawn by a hash of the seed and the key, the weights are solved for;
            over all rows the constraints hold up to the error of a sample of this size.
        seed: of that sample.

    Raises:
        ValueError: a setting is out of range, or no weights satisfy the constraints.
    """

    attributes: dict[str, float]
    labels: Sequence[str] = ()
    mean: float = 0.5
    max_weight: float = 1.0
    eps_r: float = 0.01
    eps_d: float = 0.01
    rows: int = 1 << 16
    seed: int = 0

    writes = (WEIGHT,)

    def __post_init__(self):
        for name, share in self.attributes.items():
            if not 0 <= share <= 1:
                raise ValueError(f"the attribute {name} shall have the share {share}: give 0 to 1")
        if not self.attributes:
            raise ValueError("attributes is empty; name columns and their shares")
        if not 0 < self.mean < self.max_weight:
            raise ValueError(
                f"mean={self.mean} must lie above 0 and below max_weight={self.max_weight}"
            )
        if not (self.eps_r >= 0 and self.eps_d >= 0):
            raise ValueError(f"eps_r={self.eps_r} and eps_d={self.eps_d} must be 0 or more")
        if self.rows < 1:
            raise ValueError(f"rows={self.rows}: give 1 or more")

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Attributes and labels."""
        return tuple(dict.fromkeys((*self.attributes, *self.labels)))

    def partial(self, rows: pa.RecordBatch) -> State:
        random = mix(numbers(rows, "key"), seeded(self.seed, "moments"))
        return self._lowest({"random": random, "moments": self._moments(rows)})

    def merge(self, one: State, other: State) -> State:
        return self._lowest({name: np.concatenate([one[name], other[name]]) for name in one})

    def finish(self, total: State) -> State:
        return {"dual": self.solve(total["moments"])}

    def apply(self, rows: pa.RecordBatch, state: State) -> Columns:
        return {WEIGHT: self._weights(self._moments(rows), state["dual"])}

    def solve(self, moments: np.ndarray) -> np.ndarray:
        """Returns the dual numbers [constraints + 1], those of the constraints and that of E q.

        Args:
            moments: (s_k - pi_k) and (s_k - pi_k) y_r of each row [n, constraints].

        Raises:
            ValueError: no weights satisfy the constraints.
        """
        dual, residual = _maximised(moments, self._limits(), self.mean, self.max_weight)
        if residual > TOLERANCE:
            raise ValueError(
                f"no weights from 0 to {self.max_weight} with the mean {self.mean} satisfy the "
                f"constraints (the nearest miss them by {residual:.2g}): give a lower mean, a "
                "higher max_weight, eps_r or eps_d, or other shares"
            )
        # The last bits depend on how many threads multiply matrices.
        return np.rint(dual * DUAL_STEPS) / DUAL_STEPS

    def _limits(self) -> np.ndarray:
        count = len(self.attributes)
        return np.repeat([self.eps_r, self.eps_d], [count, count * len(self.labels)])

    def _weights(self, moments: np.ndarray, dual: np.ndarray) -> np.ndarray:
        return _weights(moments, dual, self.mean, self.max_weight)

    def _moments(self, rows: pa.RecordBatch) -> np.ndarray:
        """Returns what the constraints are the means of, float64 [n, constraints]."""
        shares = self.attributes.items()
        differ = np.stack([_attribute(rows, name) - share for name, share in shares], axis=1)
        parts = [differ, *(differ * _label(rows, name)[:, None] for name in self.labels)]
        return np.concatenate(parts, axis=1)

    def _lowest(self, state: State) -> State:
        """Returns the rows with the lowest hashes, at most `rows` of them, in their order."""
        order = np.argsort(state["random"], kind="stable")
        if (np.diff(state["random"][order]) == 0).any():  # a key that comes twice
            order = np.lexsort((*state["moments"].T, state["random"]))
        return {name: values[order[: self.rows]] for name, values in state.items()}


def _attribute(rows: pa.RecordBatch, name: str) -> np.ndarray:
    values = numbers(rows, name).astype(np.float64)
    _check(name, values, (values >= 0) & (values <= 1), "an attribute is true or false, or 0 to 1")
    return values


def _label(rows: pa.RecordBatch, name: str) -> np.ndarray:
    values = numbers(rows, name).astype(np.float64)
    _check(name, values, np.isfinite(values), "a label is true or false, or a finite number")
    return values


def _check(name: str, values: np.ndarray, right: np.ndarray, rule: str) -> None:
    if not right.all():
        raise ValueError(f"{name} has the value {values[~right][0]}: {rule}")


def _weights(moments: np.ndarray, dual: np.ndarray, mean: float, highest: float) -> np.ndarray:
    """Returns q [n]; row by row, so that a weight does not depend on the rows beside it."""
    return np.clip(mean - (moments * dual[:-1]).sum(1) - dual[-1], 0.0, highest)


def _maximised(
    moments: np.ndarray, limits: np.ndarray, mean: float, highest: float
) -> tuple[np.ndarray, float]:
    """Returns the dual numbers [c + 1] and by how much the constraints are missed.

    The dual is concave and, but for -limits |dual|, smooth. A step along the gradient, which never
    makes it worse, finds which numbers are 0; Newton's step over the others follows.

    Args:
        moments: what the constraints are the means of [n, c].
        limits: of the constraints [c].
        mean: E q.
        highest: Q.
    """
    sides = np.append(limits, 0.0)
    inputs = np.concatenate([moments, np.ones((len(moments), 1))], axis=1)
    wanted = np.append(np.zeros(moments.shape[1]), mean)
    steepest = np.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1]

    def value(at: np.ndarray) -> float:
        q = _weights(moments, at, mean, highest)
        smooth = ((q - mean) ** 2 / 2 + q * (inputs @ at)).mean() - at @ wanted
        return float(smooth - sides @ np.abs(at))

    def gradient(at: np.ndarray) -> np.ndarray:
        return inputs.T @ _weights(moments, at, mean, highest) / len(inputs) - wanted

    dual = np.zeros(len(sides))
    for _ in range(MAX_ITERATIONS):
        if _missed(gradient(dual), dual, sides) <= TOLERANCE / 100:
            break
        moved = dual + gradient(dual) / steepest
        dual = np.sign(moved) * np.maximum(np.abs(moved) - sides / steepest, 0)
        free = np.append(dual[:-1] != 0, True)
        slope = (gradient(dual) - sides * np.sign(dual))[free]
        linear = mean - inputs @ dual
        inside = inputs[(linear > 0) & (linear < highest)][:, free]
        curved = inside.T @ inside / len(inputs)
        direction = np.zeros(len(dual))
        direction[free] = np.linalg.solve(curved + 1e-9 * steepest * np.eye(free.sum()), slope)
        at_start, length = value(dual), 1.0
        while length > 1e-4:
            there = dual + length * direction
            there[(np.sign(there) != np.sign(dual)) & (sides > 0)] = 0.0
            if value(there) > at_start:
                dual = there
                break
            length /= 2
    return dual, float(np.maximum(np.abs(gradient(dual)) - sides, 0).max())


def _missed(slope: np.ndarray, dual: np.ndarray, sides: np.ndarray) -> float:
    """Returns how far the dual's optimality conditions are from being met."""
    at_rest = np.maximum(np.abs(slope) - sides, 0)
    return float(np.where(dual == 0, at_rest, np.abs(slope - sides * np.sign(dual))).max())
