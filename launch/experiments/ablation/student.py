"""Student's t distribution, which neither Python nor numpy has.

In: a t value and degrees of freedom. Out: tail probabilities and quantiles, to about ten digits.
"""

import math

MAX_DOF = 1e6  # beyond, the normal distribution to seven digits


def two_sided_p(t: float, dof: float) -> float:
    """Returns the probability of |T| >= |t|."""
    dof = min(dof, MAX_DOF)
    return _incomplete_beta(dof / 2, 0.5, dof / (dof + t * t))


def quantile(level: float, dof: float) -> float:
    """Returns the t with |T| <= t at probability `level`."""
    low, high = 0.0, 1.0
    while two_sided_p(high, dof) > 1 - level:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if two_sided_p(middle, dof) < 1 - level else (middle, high)
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other side converges
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    # Lentz's method: f is the value so far, c and d ratios of numerators and denominators.
    tiny = 1e-300
    f, c, d = 1.0, 1.0, 0.0
    for i in range(10_000):
        m = i // 2
        if i == 0:
            numerator = 1.0
        elif i % 2 == 0:
            numerator = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            numerator = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / ((1 + numerator * d) or tiny)
        c = 1 + numerator / c or tiny
        f *= c * d
        if abs(1 - c * d) < 1e-14:
            break
    return front * (f - 1)
