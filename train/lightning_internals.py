"""What training changes in Lightning's loops beside their public interface, one function each.

In: a Trainer. Each function has a test in tests/train/test_lightning_internals.py, so that an
upgrade of Lightning opens these two files.
"""

import lightning.pytorch as pl


def leave_signals_to_callbacks(trainer: pl.Trainer) -> None:
    """Keeps the ranks from agreeing on SIGTERM before each step, for which every step would wait.

    Lightning broadcasts the first rank's flag over the device and reads it on the host.
    """
    loop = trainer.fit_loop.epoch_loop
    assert hasattr(loop, "_broadcast_sigterm_tensor"), "Lightning agrees on signals in another way"
    loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]


def begin_at(trainer: pl.Trainer, step: int) -> None:
    """Lets a fit without a checkpoint count its steps from one on, as after resuming at it."""
    loop = trainer.fit_loop.epoch_loop
    loop._batches_that_stepped = step
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    assert trainer.global_step == step, "Lightning counts steps in another place"


def _nothing() -> None:
    pass
