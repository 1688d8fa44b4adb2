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


def _nothing() -> None:
    pass
