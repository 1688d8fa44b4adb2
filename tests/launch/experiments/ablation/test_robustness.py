"""The baseline's line against numpy's fit and a loop, and effective robustness by hand."""

import numpy as np
import pytest

from counterpoint.launch.experiments.ablation.robustness import fit_line, resampled_robustness

X = np.array([0.3, 0.42, 0.55, 0.61])
Y = np.array([0.2, 0.27, 0.33, 0.44])


def logit(p):
    return np.log(p / (1 - p))


def test_the_line_is_least_squares_in_logits():
    line = fit_line(X, Y)
    slope, intercept = np.polyfit(logit(X), logit(Y), 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    assert line.r2 == pytest.approx(np.corrcoef(logit(X), logit(Y))[0, 1] ** 2)
    assert (line.low, line.high, line.num_points, line.left_out) == (0.3, 0.61, 4, 0)
    # 0.5 in distribution: the accuracy whose logit is the intercept.
    predicted = 1 / (1 + np.exp(-intercept))
    assert line.effective(np.array([0.5]), np.array([0.4])) == pytest.approx([0.4 - predicted])


def test_accuracies_without_a_logit_are_left_out():
    line = fit_line(np.append(X, [0.0, 0.5]), np.append(Y, [0.1, 1.0]))
    assert line.left_out == 2 and line.slope == pytest.approx(fit_line(X, Y).slope)
    assert fit_line(X[:2], Y[:2]) is None
    assert fit_line(np.full(4, 0.3), Y) is None


def test_each_draw_has_a_line_of_its_own():
    rng = np.random.default_rng(0)
    x, y = X + rng.normal(0, 0.02, (6, 4)), Y + rng.normal(0, 0.02, (6, 4))
    shares = rng.integers(0, 2, (6, 4)) + np.array([1.0, 1.0, 0.0, 0.0])
    ours = rng.uniform(0.3, 0.6, 6), rng.uniform(0.2, 0.5, 6)
    found = resampled_robustness((x, y), shares, ours)
    for i in range(6):
        w = np.sqrt(shares[i])  # polyfit squares weights
        slope, intercept = np.polyfit(logit(x[i]), logit(y[i]), 1, w=w)
        predicted = 1 / (1 + np.exp(-(slope * logit(ours[0][i]) + intercept)))
        assert found[i] == pytest.approx(ours[1][i] - predicted)
    one_place = np.zeros((1, 4))
    one_place[0, 0] = 1
    assert np.isnan(resampled_robustness((x[:1], y[:1]), one_place, (ours[0][:1], ours[1][:1])))[0]
