"""Phases: lengths, learning rates and sample counts as functions of the step."""

import math

import pytest

from counterpoint.train.phases import Phase, Phases


def test_lengths_round_up_to_whole_steps():
    phases = Phases({"a": Phase(100, 32, 1.0), "b": Phase(10, 5, 1.0)})
    assert phases.lengths == [(4, 32), (2, 5)]
    assert phases.total_steps == 6
    assert [phases.samples_before(s) for s in range(8)] == [0, 32, 64, 96, 128, 133, 138, 138]
    assert [phases.at(s)[0] for s in range(7)] == ["a", "a", "a", "a", "b", "b", "b"]
    assert phases.at(4)[2] == 0


def test_rate_warms_up_then_follows_the_cosine():
    phase = Phase(1000, 10, 2.0, warmup_samples=200, final_fraction=0.1)
    assert phase.rate(0) == 2.0 / 20
    assert phase.rate(19) == 2.0
    assert phase.rate(20) == 2.0
    middle = 2.0 * (0.1 + 0.9 * 0.5)
    assert math.isclose(phase.rate(60), middle)
    rates = [phase.rate(s) for s in range(20, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] > 0.2


def test_constant_stays():
    phase = Phase(1000, 10, 2.0, schedule="constant")
    assert {phase.rate(s) for s in range(100)} == {2.0}


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        (Phase(0, 8, 1.0), "phases.x.samples is 0"),
        (Phase(8, 0, 1.0), "phases.x.batch_size is 0"),
        (Phase(8, 8, -1.0), "phases.x.learning_rate is -1.0"),
        (Phase(8, 8, 1.0, warmup_samples=9), "phases.x.warmup_samples is 9"),
    ],
)
def test_values_out_of_range_are_named(phase, message):
    with pytest.raises(ValueError, match=message):
        Phases({"x": phase})


def test_no_phase_is_refused():
    with pytest.raises(ValueError, match="phases is empty"):
        Phases({})
