"""Weights of terms that change during a run: the fraction of the run done in, a factor out.

Pure functions, so that nothing needs to be saved. A plain number is a weight, too.
"""

import math
from typing import Protocol


class Weight(Protocol):
    """A weight as a function of the fraction of the run done, 0 to 1."""

    def __call__(self, progress: float) -> float: ...


class Ramp:
    """A straight line between two points of the run, constant before and after.

    Args:
        first, last: weights at its ends.
        start, stop: where it begins and ends, in fractions of the run.

    Raises:
        ValueError: the ends are no fractions in this order.
    """

    def __init__(
        self, first: float = 0.0, last: float = 1.0, start: float = 0.0, stop: float = 1.0
    ):
        if not 0 <= start < stop <= 1:
            raise ValueError(
                f"Ramp runs from {start:g} to {stop:g}: start and stop are fractions of the run, "
                "0 <= start < stop <= 1"
            )
        self.first, self.last, self.start, self.stop = first, last, start, stop

    def __call__(self, progress: float) -> float:
        """Returns the weight."""
        done = min(1.0, max(0.0, (progress - self.start) / (self.stop - self.start)))
        return self.first + (self.last - self.first) * done


class Harmonic:
    """weight / (epoch + 1): what m2-mix calls its decay.

    Args:
        weight: in the first epoch.
        epochs: number of equal parts of the run.

    Raises:
        ValueError: less than one epoch.
    """

    def __init__(self, weight: float, epochs: int):
        if epochs < 1:
            raise ValueError(f"Harmonic has {epochs} epochs: give at least 1")
        self.weight, self.epochs = weight, epochs

    def __call__(self, progress: float) -> float:
        """Returns the weight."""
        return self.weight / (1 + min(self.epochs - 1, math.floor(progress * self.epochs)))
