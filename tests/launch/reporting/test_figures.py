"""Curves: thinning, smoothing and tick labels."""

import numpy as np
import pytest

from counterpoint.launch.reporting import figures


def test_a_long_run_stays_small(tmp_path):
    x = np.arange(100_000.0)
    y = np.where((x >= 50_000) & (x < 51_000), np.nan, 2.0)
    thin_x, thin_y = figures.thin(x, y, 400)
    assert len(thin_x) == 400
    assert (np.diff(thin_x) > 0).all()
    assert np.nanmin(thin_y) == np.nanmax(thin_y) == 2.0
    assert np.isnan(thin_y).sum() == 4  # a gap stays a gap
    assert np.isnan(figures.smooth(thin_y, 15)).sum() == 4


def test_smoothing_is_a_centred_mean():
    y = np.random.default_rng(0).normal(size=50)
    got = figures.smooth(y, 7)
    assert got[0] == pytest.approx(y[0])
    assert got[2] == pytest.approx(y[:5].mean())
    assert got[20] == pytest.approx(y[17:24].mean())
    assert got[-1] == pytest.approx(y[-1])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1500, "1.5k"), (2_000_000, "2M"), (0.05, "0.05"), (5e-4, "5e-4"), (-3, "-3")],
)
def test_tick_labels(value, text):
    assert figures.brief(value) == text
