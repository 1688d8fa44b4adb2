"""Effective robustness: accuracy under a shift beyond what accuracy in distribution predicts.

In: pairs of accuracies of baseline runs, and of the runs in question. Out: a line through the
baseline in logits, and what is above or below it. Taori et al. ("Measuring Robustness to Natural
Distribution Shifts in Image Classification", 2020, section 2) define effective robustness as
acc_shift - line(acc_in_distribution), in accuracy, with the line fitted to logits of models of
the baseline; Nguyen et al. ("Quality Not Quantity", 2022) compare pools of CLIP by it. Here the
baseline is the pool, and random subsets of it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_POINTS = 3


@dataclass(frozen=True)
class Line:
    """A line in logits.

    Attributes:
        slope: of logit(shift) over logit(in distribution).
        intercept: likewise.
        low, high: range of the baseline's accuracies in distribution.
        num_points: that it was fitted to.
        left_out: points at an accuracy of 0 or 1, which have no logit.
        r2: share of the variance of logit(shift) that it explains; None: it does not vary.
    """

    slope: float
    intercept: float
    low: float
    high: float
    num_points: int
    left_out: int
    r2: float | None

    def predicts(self, accuracy: np.ndarray | float) -> np.ndarray:
        """Returns the accuracy under the shift of a baseline run."""
        return expit(self.slope * logit(np.asarray(accuracy)) + self.intercept)

    def effective(self, in_distribution: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Returns effective robustness."""
        return shift - self.predicts(in_distribution)


def fit_line(in_distribution: np.ndarray, shift: np.ndarray) -> Line | None:
    """Fits the line by least squares; None where fewer than three points, or one place, tell it."""
    usable = _have_logits(in_distribution) & _have_logits(shift)
    x, y = logit(in_distribution[usable]), logit(shift[usable])
    if len(x) < MIN_POINTS or np.ptp(x) < 1e-9:
        return None
    slope, intercept = fit(x[None], y[None], np.ones((1, len(x))))
    rest = y - slope * x - intercept
    spread = float(((y - y.mean()) ** 2).sum())
    kept = in_distribution[usable]
    return Line(
        float(slope[0]),
        float(intercept[0]),
        float(kept.min()),
        float(kept.max()),
        len(x),
        int((~usable).sum()),
        1 - float((rest**2).sum()) / spread if spread else None,
    )


def resampled_robustness(
    points: tuple[np.ndarray, np.ndarray],
    shares: np.ndarray,
    ours: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Returns effective robustness in each draw, with the line fitted anew in each.

    Args:
        points: the baseline's accuracies in distribution and under the shift, [draws, points].
        shares: how much each point counts in each draw (its seed may be missing, or come twice),
            [draws, points].
        ours: accuracies in each draw, [draws].

    Returns:
        [draws]; NaN where a draw has no line.
    """
    x, y = points
    usable = _have_logits(x) & _have_logits(y)
    weights = shares * usable
    x, y = logit(np.where(usable, x, 0.5)), logit(np.where(usable, y, 0.5))
    slope, intercept = fit(x, y, weights)
    own_x, own_y = ours
    fine = _have_logits(own_x)
    predicted = expit(slope * logit(np.where(fine, own_x, 0.5)) + intercept)
    return np.where(fine, own_y - predicted, np.nan)


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns slopes and intercepts of weighted least squares, a line a row of [rows, points]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(1)
        mean_x, mean_y = (weights * x).sum(1) / total, (weights * y).sum(1) / total
        dx = x - mean_x[:, None]
        variance = (weights * dx**2).sum(1)
        slope = (weights * dx * (y - mean_y[:, None])).sum(1) / variance
        slope = np.where(variance > 1e-12, slope, np.nan)
        return slope, mean_y - slope * mean_x


def logit(p: Any) -> Any:
    """Log odds."""
    return np.log(p) - np.log1p(-p)


def expit(x: Any) -> Any:
    """Inverse of `logit`."""
    return 1 / (1 + np.exp(-x))


def _have_logits(accuracy: np.ndarray) -> np.ndarray:
    return (accuracy > 0) & (accuracy < 1)
