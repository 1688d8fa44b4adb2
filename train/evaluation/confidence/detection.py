"""Telling images of the classes from others by a score: AUROC and FPR95.

In: scores of both, higher for images of the classes. Out: the two measures, with what each image
contributes.
"""

from collections.abc import Sequence

import numpy as np

from ..outcomes import Outcomes


def detection(
    inside: np.ndarray,
    outside: np.ndarray,
    inside_keys: Sequence[str],
    outside_keys: Sequence[str],
    prefix: str = "",
) -> dict[str, Outcomes]:
    """Returns `auroc` and `fpr95` of scores [n] and [m].

    `auroc` is the probability that an image of the classes scores higher than another one, ties
    counted half; its items are the images of the classes. `fpr95` is the share of the others that
    score at least as high as 95% of the images of the classes do; its items are the others. Scores
    that are not finite count as the lowest of images of the classes, the highest of others.
    """
    inside = np.where(np.isfinite(inside), inside, -np.inf)
    outside = np.where(np.isfinite(outside), outside, np.inf)
    ordered = np.sort(outside)
    below = np.searchsorted(ordered, inside, "left")
    equal = np.searchsorted(ordered, inside, "right") - below
    wins = (below + 0.5 * equal) / len(outside)
    # The highest threshold that at least 95% reach.
    needed = -(-95 * len(inside) // 100)
    threshold = np.sort(inside)[len(inside) - needed]
    accepted = outside >= threshold
    return {
        f"{prefix}auroc": Outcomes(float(wins.mean()), wins, inside_keys),
        f"{prefix}fpr95": Outcomes(float(accepted.mean()), accepted, outside_keys),
    }
