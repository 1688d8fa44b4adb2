"""A signal to one rank ends all of them after the same step, with few agreements on the way."""

import os
import signal
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from counterpoint.train.callbacks import stop
from counterpoint.train.callbacks.stop import MOST_STEPS, StopOnSignal

LAST = 400


def last_step(rank, world_size, seconds, signalled):
    """The step after which this rank ends, and how many agreements it has begun.

    Args:
        seconds: that this rank's steps take, by rank.
        signalled: (rank, step): who gets SIGTERM, during which step.
    """
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    loops = SimpleNamespace(epoch_loop=SimpleNamespace(_broadcast_sigterm_tensor=None))
    trainer = SimpleNamespace(should_stop=False, fit_loop=loops, global_step=0)
    trainer.world_size = world_size
    callback, begun = StopOnSignal(), []
    with patch.object(stop, "time", clock):
        callback.on_train_start(trainer, None)
        start = callback._control.start_highest
        callback._control.start_highest = lambda numbers: (begun.append(numbers), start(numbers))[1]
        for step in range(1, LAST + 1):
            clock.now += seconds[rank]
            if (rank, step) == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            trainer.global_step = step
            callback.on_train_batch_end(trainer, None)
            if trainer.should_stop:
                break
        callback.on_train_end(trainer, None)
    callback.teardown(trainer, None, "fit")
    return trainer.global_step, callback.signum, len(begun)


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        pytest.param((1e-4, 3.2e-4, 2e-4), 2 * MOST_STEPS, id="short"),  # ten: 3.2 ms
        pytest.param((1.6e-3, 1e-4, 1e-3), 4, id="medium"),  # two
        pytest.param((1.0, 9.0, 3.0), 2, id="long"),
    ],
)
@pytest.mark.parametrize("step", [1, 57, 58, 59])
def test_all_ranks_stop_after_the_same_step(gloo, seconds, most, step):
    ends = gloo(3, last_step, seconds, (1, step))
    assert len({end for end, _, _ in ends}) == 1
    end, _, num_agreements = ends[0]
    assert all(s == signal.SIGTERM for _, s, _ in ends)
    assert step < end <= step + most + (2 if step == 1 else 0)
    if step > 50:
        assert num_agreements <= 2 + end / (most / 2)


def test_without_a_signal_none_stops(gloo):
    assert gloo(2, last_step, (1.6e-4, 1e-4), (0, 0)) == [(LAST, None, 1 + LAST // MOST_STEPS)] * 2
