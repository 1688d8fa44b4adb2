"""Learning-rate curves: pure functions of the step, so that nothing needs to be saved.

Steps are 0-based and count from the curve's own start. All curves rise linearly from 0 to the peak
over `warmup` steps, whose last has the peak.
"""

import math
from collections.abc import Callable

Curve = Callable[[int, float], float]


def warmed_up(step: int, peak: float, warmup: int, curve: Curve) -> float:
    """Returns the warm-up's rate, then `curve(steps since its end, peak)`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return curve(step - warmup, peak)


def cosine(
    step: int, peak: float, num_steps: int, warmup: int = 0, final_fraction: float = 0.0
) -> float:
    """Returns half a cosine from the peak to `final_fraction` of it at step `num_steps`."""

    def curve(since: int, peak: float) -> float:
        half = (1 + math.cos(math.pi * (since / max(1, num_steps - warmup)))) / 2
        return peak * (final_fraction + (1 - final_fraction) * half)

    return warmed_up(step, peak, warmup, curve)


def constant(
    step: int,
    peak: float,
    num_steps: int,
    warmup: int = 0,
    cooldown: int = 0,
    final_fraction: float = 0.0,
) -> float:
    """Returns the peak, then a linear cool-down over `cooldown` steps (Hagele et al. 2024)."""
    rate = warmed_up(step, peak, warmup, lambda _, peak: peak)
    return cooled_down(rate, step, num_steps, cooldown, final_fraction)


def rsqrt(
    step: int,
    peak: float,
    num_steps: int,
    warmup: int = 0,
    cooldown: int = 0,
    final_fraction: float = 0.0,
    timescale: int = 10_000,
) -> float:
    """Returns peak * sqrt(t / (t + steps since the warm-up)), then a linear cool-down.

    As in Zhai et al. 2022 (Scaling Vision Transformers): its length need not be known in advance,
    and a cool-down may start from any step.
    """
    rate = warmed_up(
        step, peak, warmup, lambda since, peak: peak * math.sqrt(timescale / (timescale + since))
    )
    return cooled_down(rate, step, num_steps, cooldown, final_fraction)


def cooled_down(
    rate: float, step: int, num_steps: int, cooldown: int, final_fraction: float
) -> float:
    """Returns `rate`, which falls linearly to `final_fraction` of it at step `num_steps`."""
    left = num_steps - step
    if left >= cooldown:
        return rate
    return rate * (final_fraction + (1 - final_fraction) * left / cooldown)
