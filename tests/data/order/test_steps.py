"""Steps, positions, phases, and each rank's share."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterpoint.data.order.steps import Steps, Turn

phase_lists = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4).map(lambda n: 4 * n)), min_size=1, max_size=4
)


@given(phase_lists)
def test_positions_cover_the_sequence_in_order(phases):
    steps = Steps(phases)
    assert steps.total_steps == sum(steps for steps, _ in phases)
    done = 0
    sizes = [size for steps, size in phases for _ in range(steps)]
    for step, size in enumerate(sizes):
        assert steps.batch_size(step) == size
        assert steps.first_position(step) == done
        assert steps.positions(step).tolist() == list(range(done, done + size))
        done += size
    assert steps.first_position(steps.total_steps) == steps.total_samples == done


@given(phase_lists, st.integers(0, 3), st.integers(1, 3), st.integers(0, 3))
def test_a_stream_takes_its_turns_and_no_sample_is_left_out(phases, first, count, rest):
    cycle = first + count + rest
    steps = Steps(phases, Turn(first, count, cycle))
    done, step = 0, 0
    for length, size in phases:
        for _ in range(length):
            is_turn = first <= step % cycle < first + count
            assert steps.batch_size(step) == (size if is_turn else 0)
            assert steps.first_position(step) == done
            done += size if is_turn else 0
            assert steps.positions(step).tolist() == list(
                range(done - steps.batch_size(step), done)
            )
            step += 1
    assert steps.first_position(step) == steps.total_samples == done


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 100), st.data())
def test_shares_are_a_partition_by_lane(world_size, per_rank, first, data):
    size = world_size * per_rank
    positions = np.arange(first, first + size)
    lanes = np.array(data.draw(st.lists(st.integers(0, 7), min_size=size, max_size=size)))
    of = dict(zip(positions.tolist(), lanes.tolist(), strict=True))
    parts = [Steps.deal(positions, lanes, r, world_size).tolist() for r in range(world_size)]
    assert [len(part) for part in parts] == [per_rank] * world_size
    assert sorted(chain(*parts)) == positions.tolist()
    assert all(part == sorted(part) for part in parts)
    for part, following in pairwise(parts):
        assert max((of[p], p) for p in part) < min((of[p], p) for p in following)


def test_one_process_keeps_the_order():
    lanes = np.array([3, 0, 1, 2, 3, 0])
    assert Steps.deal(np.arange(10, 16), lanes, 0, 1).tolist() == list(range(10, 16))
    assert Steps.deal(np.arange(10, 16), lanes, 0, 2).tolist() == [11, 12, 15]
    assert Steps.deal(np.arange(10, 16), lanes, 1, 2).tolist() == [10, 13, 14]


def test_a_batch_that_does_not_divide_is_refused_with_what_works():
    steps = Steps([(3, 96), (2, 100)])
    steps.check_world_size(4)
    with pytest.raises(ValueError, match=r"batch_size=100 .* world size 3; use 99 or 102"):
        steps.check_world_size(3)
    lanes = np.zeros(100, dtype=np.int64)
    assert len(Steps.deal(steps.positions(0), lanes[:96], 1, 3)) == 32
    with pytest.raises(ValueError, match="use 99 or 102"):
        Steps.deal(steps.positions(4), lanes, 0, 3)
    with pytest.raises(ValueError, match="world size 8; use 8, or another"):
        Steps([(1, 4)]).check_world_size(8)


def test_empty_runs_and_steps_outside_are_refused():
    with pytest.raises(ValueError, match="no steps"):
        Steps([])
    with pytest.raises(ValueError, match="batch size 0"):
        Steps([(3, 0)])
    for step in (-1, 3):
        with pytest.raises(IndexError):
            Steps([(3, 2)]).positions(step)


def test_what_a_run_that_went_back_passes_over():
    steps = Steps([(10, 4), (10, 6)])
    seen = {step: steps.positions(step).tolist() for step in range(12)}
    steps.left_out = steps.passing_over(8, 12)  # over the border of two phases
    taken = [p for step in range(8) for p in seen[step]]
    taken += [p for step in range(8, 20) for p in steps.positions(step).tolist()]
    bad = {p for step in range(8, 12) for p in seen[step]}
    assert taken == [p for p in range(100 + len(bad)) if p not in bad]
    assert steps.first_position(20) == steps.total_samples == 100

    # Once more from the same step, then from one before: nothing comes twice.
    for step, end in ((8, 10), (6, 13)):
        passed = {p for s in range(step, end) for p in steps.positions(s).tolist()}
        first = steps.positions(end - 1)[-1] + 1
        steps.left_out = steps.passing_over(step, end)
        assert steps.positions(step)[0] == first and not passed & set(
            p for s in range(step, 20) for p in steps.positions(s).tolist()
        )
    assert len(steps.left_out) == 1
