"""Differences of two groups of runs on the same items: intervals and p-values.

In: what each run got right, [seeds, items], of two groups whose runs share seeds. Out: the mean
difference, how far chance reaches, and the probability of as large a difference under no effect.

Runs differ by chance twice: another seed (initialisation, order, the draw of a random subset) gives
another model, and other test items another score. Every seed meets every item, so the two are
crossed, not nested. Two answers stand side by side:

- the bootstrap resamples seeds and items (Owen, "The pigeonhole bootstrap", 2007). Of S seeds it
  draws S - 1, so that the variance over seeds is unbiased (McCarthy & Snowden 1985). With few
  seeds its tails are still those of few numbers: it is shown, and does not decide.
- the t test adds the variances over seeds and over items, less what both contain, with
  Satterthwaite's degrees of freedom. In radiology readers and cases are crossed in the same way
  (Dorfman, Berbaum & Metz 1992; Hillis 2007). Two or three seeds hardly tell their own spread, so
  that of all subsets together is taken, as in an analysis of variance by blocks, where the blocks
  are seeds. It decides, and the same test with the pair's own spread stands beside it.

docs/howto/compare.md has error rates of all three.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .student import MAX_DOF, quantile, two_sided_p

NUM_DRAWS = 10_000
LEVEL = 0.95
NUMBERS_AT_A_TIME = 1 << 24

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """One group less the other.

    Attributes:
        value: mean over seeds of the differences.
        num_seeds: that both groups have.
        num_items: 0 where the outcomes of items are not known.
        t: 95% interval of the t test with the pooled spread of seeds; None: one seed.
        p: of this test; None: one seed, which tells nothing about another training.
        dof: its degrees of freedom.
        own_t: interval with the spread of these seeds alone.
        own_p: of it.
        bootstrap: interval over seeds and items; None: one seed.
        bootstrap_p: of it.
        over_items: bootstrap interval over items only: of these models, on other items.
    """

    value: float
    num_seeds: int
    num_items: int
    t: Interval | None = None
    p: float | None = None
    dof: float | None = None
    own_t: Interval | None = None
    own_p: float | None = None
    bootstrap: Interval | None = None
    bootstrap_p: float | None = None
    over_items: Interval | None = None


def resampled_means(
    values: np.ndarray, weights: np.ndarray, num_draws: int = NUM_DRAWS, seed: int = 0
) -> np.ndarray:
    """Returns weighted means over resampled items, the same items for every row.

    Args:
        values: outcomes [rows, items].
        weights: how much each item counts, [items].
        num_draws: resamplings.
        seed: of the draws.

    Returns:
        [draws, rows].
    """
    rng = np.random.default_rng(seed)
    num_items = values.shape[1]
    columns = np.column_stack([(values * weights).T, weights])
    sums = np.empty((num_draws, columns.shape[1]))
    at_a_time = max(1, NUMBERS_AT_A_TIME // num_items)
    for start in range(0, num_draws, at_a_time):
        num = min(at_a_time, num_draws - start)
        drawn = rng.integers(0, num_items, (num, num_items))
        drawn += num_items * np.arange(num)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=num * num_items).reshape(num, num_items)
        sums[start : start + num] = counts.astype(np.float64) @ columns
    # A draw without any item that counts is possible where few do.
    total = np.where(sums[:, -1:] > 0, sums[:, -1:], np.nan)
    return sums[:, :-1] / total


def drawn_seeds(num_seeds: int, num_draws: int = NUM_DRAWS, seed: int = 0) -> np.ndarray:
    """Returns the share of each seed in each draw of S - 1 of S seeds, [draws, S]."""
    if num_seeds == 1:
        return np.ones((num_draws, 1))
    rng = np.random.default_rng([seed, num_seeds])
    num = num_seeds - 1
    return rng.multinomial(num, np.full(num_seeds, 1 / num_seeds), num_draws) / num


@dataclass(frozen=True)
class Spread:
    """How much scores scatter between seeds, beyond what moves all runs of a seed alike.

    Attributes:
        mean_square: variance of one score.
        dof: its degrees of freedom.
    """

    mean_square: float
    dof: int

    def of_difference(self, num_seeds: int) -> float:
        """Variance of the difference of two means over seeds."""
        return 2 * self.mean_square / num_seeds


def pooled_spread(scores: np.ndarray) -> Spread | None:
    """Returns the residual of runs and seeds in an analysis of variance; None: too few of them.

    Args:
        scores: of every run with the same seeds, [runs, seeds].
    """
    num_runs, num_seeds = scores.shape
    if num_runs < 2 or num_seeds < 2:
        return None
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0) + scores.mean()
    dof = (num_runs - 1) * (num_seeds - 1)
    return Spread(float((rest**2).sum()) / dof, dof)


def paired_difference(
    ours: np.ndarray,
    theirs: np.ndarray,
    weights: np.ndarray,
    resampled_ours: np.ndarray,
    resampled_theirs: np.ndarray,
    pooled: Spread | None = None,
    seed: int = 0,
) -> Difference:
    """Compares two groups item by item.

    Args:
        ours: outcomes [seeds, items].
        theirs: likewise, of the same seeds and items.
        weights: how much each item counts, [items].
        resampled_ours: of `resampled_means`, [draws, seeds].
        resampled_theirs: of the same draws.
        pooled: spread between seeds of all runs; None: that of these.
        seed: of the draws of seeds.
    """
    num_seeds, num_items = ours.shape
    by_item = ours - theirs
    value = float((by_item @ weights / weights.sum()).mean())
    drawn = resampled_ours - resampled_theirs
    over_items = interval(drawn.mean(1))
    if num_seeds == 1:
        return Difference(value, 1, num_items, over_items=over_items)
    both = (drawn * drawn_seeds(num_seeds, len(drawn), seed)).sum(1)
    resampled: dict[str, Any] = {"bootstrap": interval(both), "bootstrap_p": two_sided(both)}
    resampled["over_items"] = over_items
    own, dof = crossed_variance(by_item, weights)
    own_t, own_p = _t_test(value, own, dof)
    variance, dof = crossed_variance(by_item, weights, pooled)
    t, p = _t_test(value, variance, dof)
    return Difference(value, num_seeds, num_items, t, p, dof, own_t, own_p, **resampled)


def paired_t(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray) -> Difference:
    """Compares two groups item by item, with their own spread of seeds and without resampling.

    Args:
        ours: outcomes [seeds, items].
        theirs: likewise, of the same seeds and items.
        weights: how much each item counts, [items].
    """
    by_item = ours - theirs
    value = float((by_item @ weights / weights.sum()).mean())
    if len(ours) == 1:
        return Difference(value, *by_item.shape)
    variance, dof = crossed_variance(by_item, weights)
    own_t, own_p = _t_test(value, variance, dof)
    return Difference(value, *by_item.shape, dof=dof, own_t=own_t, own_p=own_p)


def difference_of_means(
    ours: np.ndarray, theirs: np.ndarray, pooled: Spread | None = None
) -> Difference:
    """Compares two groups by their scores alone, [seeds]: the paired t test over seeds."""
    by_seed, num_seeds = ours - theirs, len(ours)
    value = float(by_seed.mean())
    if num_seeds == 1:
        return Difference(value, 1, 0)
    own = Spread(float(by_seed.var(ddof=1)) / 2, num_seeds - 1)
    used = pooled or own
    t, p = _t_test(value, used.of_difference(num_seeds), used.dof)
    own_t, own_p = _t_test(value, own.of_difference(num_seeds), own.dof)
    return Difference(value, num_seeds, 0, t, p, float(used.dof), own_t, own_p)


def crossed_variance(
    by_item: np.ndarray, weights: np.ndarray, pooled: Spread | None = None
) -> tuple[float, float]:
    """Returns the variance of the mean of [seeds, items], both random, and its degrees of freedom.

    Args:
        by_item: differences [seeds, items], at least two of each.
        weights: how much each item counts, [items].
        pooled: spread between seeds; None: that of `by_item`.
    """
    num_seeds, num_items = by_item.shape
    by_seed = by_item @ weights / weights.sum()
    spread = pooled or Spread(float(by_seed.var(ddof=1)) / 2, num_seeds - 1)
    # Items as they move a weighted mean (its linearisation).
    moves = by_seed[:, None] + weights / weights.mean() * (by_item - by_seed[:, None])
    of_item = moves.mean(0)
    over_seeds = spread.of_difference(num_seeds)
    over_items = float(of_item.var(ddof=1)) / num_items
    rest = moves - by_seed[:, None] - of_item + by_seed.mean()
    mean_square = float((rest**2).sum()) / ((num_seeds - 1) * (num_items - 1))
    # Both contain the interaction once: without the subtraction it would count twice. Never less
    # than what the seeds tell (as Hillis 2007), or the items.
    own_items = max(over_items - mean_square / (num_seeds * num_items), 0.0)
    variance = max(over_seeds + own_items, over_items)
    if over_seeds == 0:
        return variance, MAX_DOF
    # Few seeds are what makes the variance uncertain; the items' own part is known well.
    return variance, min(MAX_DOF, spread.dof * max(1.0, (variance / over_seeds) ** 2))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p-values for their number (Holm 1979): any error among them stays at the level."""
    known = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[i] = highest
    return corrected


def _t_test(value: float, variance: float, dof: float) -> tuple[Interval, float]:
    error = math.sqrt(variance)
    if error == 0:
        return (value, value), 1.0 if value == 0 else 0.0
    reach = quantile(LEVEL, dof) * error
    return (value - reach, value + reach), two_sided_p(value / error, dof)


def interval(draws: np.ndarray) -> Interval:
    """Returns the percentiles that hold 95% of the draws between them; NaN are left out."""
    low, high = np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def two_sided(draws: np.ndarray) -> float:
    """Returns the p-value of draws of a difference, never zero: the estimate counts as a draw."""
    draws = draws[np.isfinite(draws)]
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (len(draws) + 1))
