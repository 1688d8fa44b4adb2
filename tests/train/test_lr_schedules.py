"""Learning-rate curves against values worked out by hand."""

import math

import pytest

from counterpoint.train.lr_schedules import (
    constant,
    cosine,
    rsqrt,
)
from counterpoint.train.phases import Phase


def test_all_rise_linearly_to_the_peak():
    for curve in (cosine, constant, rsqrt):
        rates = [curve(step, 8.0, 100, warmup=4) for step in range(5)]
        assert rates[:4] == [2.0, 4.0, 6.0, 8.0]
        assert rates[4] == 8.0


def test_cosine():
    assert cosine(60, 2.0, 110, warmup=10) == pytest.approx(1.0)
    assert cosine(110, 2.0, 110, warmup=10) == pytest.approx(0.0)
    assert cosine(110, 2.0, 110, warmup=10, final_fraction=0.1) == pytest.approx(0.2)
    assert cosine(35, 2.0, 110, warmup=10) == pytest.approx(1 + math.sqrt(0.5))


def test_cosine_is_the_phases_curve_to_the_last_bit():
    phase = Phase(samples=1000, batch_size=10, learning_rate=3e-4, warmup_samples=70)
    phase.final_fraction = 0.03
    for step in range(100):
        assert cosine(step, 3e-4, 100, 7, 0.03) == phase.rate(step)


def test_constant_with_cooldown():
    rates = [constant(step, 1.0, 100, warmup=10, cooldown=20) for step in range(101)]
    assert rates[10:81] == [1.0] * 71
    assert rates[90] == pytest.approx(0.5) and rates[99] == pytest.approx(0.05)
    assert rates[100] == 0
    assert constant(100, 1.0, 100, cooldown=20, final_fraction=0.2) == pytest.approx(0.2)
    assert constant(99, 1.0, 100) == 1.0


def test_rsqrt():
    assert rsqrt(10 + 300, 1.0, 10_000, warmup=10, timescale=100) == pytest.approx(0.5)
    # Its length changes nothing before the cool-down.
    short = [rsqrt(step, 1.0, 500, 10, 100, timescale=50) for step in range(400)]
    assert short == [rsqrt(step, 1.0, 5000, 10, 100, timescale=50) for step in range(400)]
    free = rsqrt(450, 1.0, 5000, 10, 100, timescale=50)
    assert rsqrt(450, 1.0, 500, 10, 100, timescale=50) == pytest.approx(free / 2)


def test_rates_from_the_batch():
    assert Phase(1, 4096, 1e-3, rate_batch=1024).peak == 4e-3
    assert Phase(1, 4096, 1e-3, rate_batch=1024, rate_scaling="sqrt").peak == 2e-3
