"""Capsules: files that hold a step whose gradient was not finite, to compute it again elsewhere.

In: the batch and the weights of such a step, which the guard has left out, so that the weights are
those before it. Out: `RUN/nonfinite/step-00000012.pt`: tensors and plain values alone, which
`counterpoint replay` reads on any machine (`train/replay.py`).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from torch import Tensor

from ..checkpointing.checkpoint import write
from ..distributed import ControlGroup
from ..module import ContrastiveModule
from ..screen import log_line

LIMIT = 1 << 30  # bytes of a capsule's batch, beside the weights


class Capsules(pl.Callback):
    """Writes the first steps that are not finite. Each step waits for the device to know.

    Args:
        folder: of the files.
        most: how many there may be.
    """

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self._num = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Counts what earlier starts have written (collective)."""
        self._control = ControlGroup()
        self._num = self._control.gather(len(list(self.folder.glob("step-*.pt"))))[0]

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Writes a capsule if the norm of the global gradient is not finite (collective)."""
        assert isinstance(pl_module, ContrastiveModule)
        norm = pl_module.grad_norm
        if self._num >= self.most or norm is None or bool(norm.isfinite()):
            return
        self._num += 1
        ranks, losses = self._choose(batch, float(pl_module.report["loss"]))
        parts = self._gather(batch, ranks)
        state = trainer.strategy.lightning_module_state_dict()
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        path = self.folder / f"step-{step:08d}.pt"
        content = {
            "step": step - 1,
            "seed": pl_module.seed,
            "earlier": [list(pair) for pair in pl_module.phases.earlier],
            "config": pl_module.run.config,
            "precision": str(trainer.precision),
            "world_size": trainer.world_size,
            "ranks": list(ranks),
            "losses": losses,
            "grad_norm": float(norm),
            "parts": parts,
            "state_dict": state,
        }
        try:
            write(content, path)
        except OSError as error:  # the run itself is well
            log_line(f"{path} cannot be written ({error.strerror or error})", sys.stderr)
            return
        log_line(f"step {step} is not finite: counterpoint replay {path}", sys.stderr)

    def _choose(self, batch: dict[str, Tensor], loss: float) -> tuple[list[int], list[float]]:
        """Returns the ranks whose rows go into the file, and the losses of all.

        All of them, if they are small enough; else first those whose own loss is not finite.
        """
        losses = self._control.gather(loss)
        room = max(1, LIMIT // max(1, sum(t.nbytes for t in tensors_of(batch).values())))
        finite = [abs(value) < float("inf") for value in losses]
        return sorted(sorted(range(len(losses)), key=finite.__getitem__)[:room]), losses

    def _gather(self, batch: dict[str, Tensor], ranks: Sequence[int]) -> list[dict[str, Tensor]]:
        """Returns the batches of these ranks on the first one; they come one after the other."""
        own = {name: tensor.cpu() for name, tensor in tensors_of(batch).items()}
        if self._control.group is None:
            return [own]
        parts = []
        for rank in ranks:
            message: list[Any] = [own]
            if rank > 0 and dist.get_rank() == rank:
                dist.send_object_list(message, 0, self._control.group)
            elif rank > 0 and dist.get_rank() == 0:
                dist.recv_object_list(message, rank, self._control.group)
            parts += message
        return parts


def tensors_of(batch: dict[str, Any]) -> dict[str, Tensor]:
    """Returns a batch without what is there twice, for the host."""
    return {name: value for name, value in batch.items() if isinstance(value, Tensor)}
