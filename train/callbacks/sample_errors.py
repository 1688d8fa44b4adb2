"""Sample errors of all ranks, added up and compared with the budget.

In: the data module's ledger, in which each rank counts the errors of its own batches. Out: equal
totals on every rank before they are logged or saved, and `RUN/skipped.json` with causes and shards;
past the budget the run ends on every rank.
"""

import json
from pathlib import Path

import lightning.pytorch as pl

from ...data.files import write_whole
from ...data.pairs import Pairs
from ..checkpointing.checkpoint import Checkpoints
from ..distributed import ControlGroup


class CountErrors(pl.Callback):
    """Merges the ranks' counts at log steps and before every checkpoint.

    Args:
        checkpoints: whose files hold the totals.
        path: of the table of skipped samples; written with the first one.
    """

    def __init__(self, checkpoints: Checkpoints, path: Path):
        self.checkpoints = checkpoints
        self.path = path
        self._written = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._control = ControlGroup()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Runs after the stop is agreed and before rows and checkpoints are written."""
        step = trainer.global_step
        if (
            step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
            or self.checkpoints.is_regular(step)
            or step == trainer.max_steps
            or trainer.should_stop
        ):
            self.count(trainer)

    def count(self, trainer: pl.Trainer) -> None:
        """Adds up the errors since the last call (collective).

        Raises:
            ValueError: more samples were unusable than the budget allows.
        """
        data: Pairs = trainer.datamodule  # type: ignore[attr-defined]
        ledgers = {name: stream.ledger for name, stream in data.every_stream.items()}
        own = {name: ledger.take_delta() for name, ledger in ledgers.items()}
        for deltas in self._control.gather(own):
            for name, ledger in ledgers.items():
                ledger.merge(deltas[name])
        num_errors = sum(ledger.errors for ledger in ledgers.values())
        if trainer.is_global_zero and num_errors != self._written:
            rows = [
                ({"stream": name} if name else {}) | row
                for name, ledger in ledgers.items()
                for row in ledger.table()
            ]
            write_whole(self.path, json.dumps(rows, indent=1) + "\n")
            self._written = num_errors
        for ledger in ledgers.values():
            ledger.check()
