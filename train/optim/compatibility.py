"""Which optimizers fit which strategies and sharded parameters.

In: the optimizer's settings, the strategy, the parameters. Out: a ValueError where they do not fit.
"""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy, Strategy
from torch import nn

from ..strategies.row_shards import row_shards_in
from .adamw import AdamW


def check_optimizer(strategy: Strategy, optim: AdamW) -> None:
    """Refuses what would not be the same optimiser on pieces of parameters, or not work at all.

    Raises:
        ValueError: its update needs whole tensors, and ZeRO has slices of them; it could not be
            resumed; or it takes a backward pass that ZeRO or a gradient scaler would not know.
    """
    scaled = getattr(strategy.precision_plugin, "scaler", None) is not None
    if optim.own_backward and (scaled or isinstance(strategy, DeepSpeedStrategy)):
        raise ValueError(
            f"optim names {optim.name}, which takes a backward pass of its own: neither "
            "ZeRO nor the gradient scaler of 16-mixed knows it; use trainer.strategy=ddp or fsdp2 "
            "with bf16-mixed or 32-true, or another optimiser"
        )
    if isinstance(strategy, ModelParallelStrategy) and optim.own_shapes:
        raise ValueError(
            f"optim names {optim.name}, whose factored moments have shapes of their own, "
            "and FSDP2 resumes from moments that are cut like their parameters: use "
            "trainer.strategy=ddp, or another optimiser"
        )
    if isinstance(strategy, DeepSpeedStrategy) and optim.whole_tensors:
        raise ValueError(
            f"optim names {optim.name}, which needs whole tensors, and ZeRO cuts them "
            "up: use trainer.strategy=ddp, or AdamW or Lion"
        )


def check_elementwise(module: nn.Module, optim: AdamW, scaler: Any) -> None:
    """Refuses what would treat rows unlike the whole.

    Raises:
        ValueError: the optimiser, or a gradient scaler, would.
    """
    found = ", ".join(row_shards_in(module))
    if found and (optim.whole_tensors or optim.own_backward):
        raise ValueError(
            f"optim names {optim.name}, which needs whole tensors or averages gradients "
            f"itself, and each rank keeps rows of its own of {found}: use AdamW or Lion, or a term "
            "whose parameters are whole"
        )
    if found and scaler is not None:
        raise ValueError(
            f"trainer.precision=16-mixed skips steps by what each rank finds in its gradients, and "
            f"of {found} ranks have different rows: use bf16-mixed"
        )
