"""Out of GPU memory: what held it, which key to turn, and a snapshot of the allocator.

In: the error that ends a fit. Out: `RUN/memory/oom_rank_R.pickle`, for
https://pytorch.org/memory_viz, and a sentence. With `trace.memory_steps` the snapshot has the
stacks of what was allocated.
"""

import socket
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from ..module import ContrastiveModule
from ..strategies.sharded_tensors import local
from ..torch_internals import dump_memory_snapshot

GIB = 2**30
EVALUATION = "train/evaluation/"
LARGE = 0.5  # share of the memory from which the training state, not the batch, is the cause


class OutOfMemory(pl.Callback):
    """Keeps what explains the error, before Lightning's teardown empties the device.

    Args:
        folder: gets the snapshot.

    Attributes:
        sentence: about the error; None: memory has not run out.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.sentence: str | None = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Writes the snapshot; the caller of the fit raises the sentence."""
        if not isinstance(exception, torch.OutOfMemoryError):
            return
        assert isinstance(pl_module, ContrastiveModule)
        path = self.folder / f"oom_rank_{trainer.global_rank}.pickle"
        self.folder.mkdir(parents=True, exist_ok=True)
        dump_memory_snapshot(path)
        device = pl_module.device
        held, total = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[1]
        state = training_state(pl_module, trainer.optimizers, device)
        frames = traceback.extract_tb(exception.__traceback__)
        evaluates = any(EVALUATION in frame.filename for frame in frames)
        self.sentence = (
            f"rank {trainer.global_rank} ({socket.gethostname()}) is out of GPU memory in step "
            f"{trainer.global_step + 1}: of {total / GIB:.1f} GiB tensors hold {held / GIB:.1f}, "
            f"and weights, gradients and the optimizer's state {state / GIB:.1f} of these; "
            f"{remedy(pl_module, state / total, evaluates)} ({path} shows every block, at "
            "https://pytorch.org/memory_viz)"
        )


def training_state(
    module: ContrastiveModule, optimizers: Iterable[torch.optim.Optimizer], device: torch.device
) -> int:
    """Returns the bytes of parameters, gradients and optimizer states that lie on the device."""
    tensors: list[Any] = [*module.parameters()]
    tensors += [p.grad for p in module.parameters() if p.grad is not None]
    for optimizer in optimizers:
        tensors += [v for state in optimizer.state.values() for v in state.values()]
    if module.ema is not None:
        tensors += module.ema.model.parameters()
    pieces = [local(t) for t in tensors if isinstance(t, Tensor)]
    return sum(piece.nbytes for piece in pieces if piece.device == device)


def remedy(module: ContrastiveModule, share: float, evaluates: bool) -> str:
    """Returns which key to turn.

    Args:
        module: that trains.
        share: of the device's memory, of the training state.
        evaluates: whether an evaluation needed the memory.
    """
    if evaluates:
        return "lower evaluation.batch_size"
    if share > LARGE:
        return (
            "cut that up over ranks with trainer.strategy=fsdp2 or zero3, or move the "
            "optimizer's part to the host with zero2_offload"
        )
    chunks = module.model.chunks
    return (
        f"raise model.chunks from {chunks} to {2 * chunks}, with which the towers hold half as "
        "much at a time and compute the same"
    )
