"""Lightning's private parts do what they are used for; an upgrade of Lightning opens this file."""

import pytest
from small_run import module, train

from counterpoint.train.callbacks.stop import StopOnSignal


def broadcasts(rank, world_size, stops):
    """How often ranks agree on SIGTERM in a fit of three steps."""
    seen = []
    made = module(3)
    loop = "lightning.pytorch.loops.training_epoch_loop._TrainingEpochLoop"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{loop}._broadcast_sigterm_tensor", lambda self: seen.append(rank))
        train(made, world_size, "ddp", callbacks=[StopOnSignal()] if stops else [])
    return len(seen)


def test_lightning_agrees_on_signals_before_each_step_unless_we_do(gloo):
    assert gloo(2, broadcasts, False) == [3, 3]
    assert gloo(2, broadcasts, True) == [0, 0]
