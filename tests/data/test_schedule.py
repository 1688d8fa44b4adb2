"""Steps, positions and phases."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.schedule import Schedule

phase_lists = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 4 * n)), min_size=1, max_size=4
)


@given(phase_lists, st.sampled_from([1, 2, 4]))
def test_positions_cover_the_sequence_in_order(phases, world_size):
    schedule = Schedule(phases)
    assert schedule.total_steps == sum(steps for steps, _ in phases)
    done = 0
    sizes = [size for steps, size in phases for _ in range(steps)]
    for step, size in enumerate(sizes):
        assert schedule.batch_size(step) == size
        assert schedule.first_position(step) == done
        ranks = [schedule.positions(step, rank, world_size) for rank in range(world_size)]
        assert {len(r) for r in ranks} == {size // world_size}
        merged = np.stack(ranks, axis=1).flatten()
        assert merged.tolist() == list(range(done, done + size))
        done += size
    assert schedule.first_position(schedule.total_steps) == schedule.total_samples == done


def test_a_batch_that_does_not_divide_is_refused_with_what_works():
    schedule = Schedule([(3, 96), (2, 100)])
    schedule.check_world_size(4)
    with pytest.raises(ValueError, match=r"batch_size=100 .* world size 3; use 99 or 102"):
        schedule.check_world_size(3)
    assert len(schedule.positions(0, 1, 3)) == 32
    with pytest.raises(ValueError, match="use 99 or 102"):
        schedule.positions(4, 0, 3)
    with pytest.raises(ValueError, match="world size 8; use 8, or another"):
        Schedule([(1, 4)]).check_world_size(8)


def test_empty_runs_and_steps_outside_are_refused():
    with pytest.raises(ValueError, match="no steps"):
        Schedule([])
    with pytest.raises(ValueError, match="batch size 0"):
        Schedule([(3, 0)])
    for step in (-1, 3):
        with pytest.raises(IndexError):
            Schedule([(3, 2)]).positions(step, 0, 1)
