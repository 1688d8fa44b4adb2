"""How often an ablation finds a difference where there is none.

Run it in `tests/`: `python -m benchmarks.ablation_error_rates`.

In: nothing. Out: for three kinds of chance, the share of comparisons with p below 5% by the pooled
test, by the test with the pair's own spread, and by the bootstrap.
"""

import numpy as np

from counterpoint.launch.experiments.ablation.statistics import (
    crossed_variance,
    drawn_seeds,
    interval,
    pooled_spread,
    resampled_means,
)
from counterpoint.launch.experiments.ablation.student import two_sided_p

RUNS, SEEDS, ITEMS, REPEATS, DRAWS = 9, 3, 1000, 400, 400
# Standard deviations between seeds, between items of a run, and of the rest.
KINDS = {"seeds": (0.02, 0.0, 0.05), "items": (0.0, 0.3, 0.3), "both alike": (0.008, 0.1, 0.4)}


def main() -> None:
    """Prints a line for each kind of chance, with equal and with unequal spreads of seeds."""
    rng = np.random.default_rng(0)
    for factor in (1.0, 2.0):  # of the spread of the first run
        for kind, (of_seeds, of_items, of_rest) in KINDS.items():
            wrong = np.zeros(3)
            for _ in range(REPEATS):
                spread = np.where(np.arange(RUNS) == 0, factor, 1.0) * of_seeds
                outcomes = (
                    rng.normal(0, 1, (RUNS, SEEDS, 1)) * spread[:, None, None]
                    + rng.normal(0, of_items, (RUNS, 1, ITEMS))
                    + rng.normal(0, of_rest, (RUNS, SEEDS, ITEMS))
                )
                wrong += errors(outcomes, rng)
            shares = ", ".join(f"{100 * share:.1f}%" for share in wrong / REPEATS)
            print(f"first run {factor:g} x the spread, chance in {kind}: {shares}", flush=True)


def errors(outcomes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns whether each of the three finds a difference of the first two runs."""
    ones, difference = np.ones(ITEMS), outcomes[0] - outcomes[1]
    found = []
    for spread in (pooled_spread(outcomes.mean(2)), None):
        variance, dof = crossed_variance(difference, ones, spread)
        found.append(two_sided_p(difference.mean() / variance**0.5, dof) < 0.05)
    seed = int(rng.integers(1 << 30))
    drawn = resampled_means(difference, ones, DRAWS, seed)
    low, high = interval((drawn * drawn_seeds(SEEDS, DRAWS, seed + 1)).sum(1))
    return np.array([*found, not low <= 0 <= high])


if __name__ == "__main__":
    main()
