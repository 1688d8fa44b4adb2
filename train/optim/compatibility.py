"""Which optimizers fit which strategies, precisions and row shards.

In: the optimizer's settings, the strategy's answers, the parameters. Out: a ValueError where they
do not fit.
"""

from typing import Any

from torch import nn

from ..strategies.base import Sharding
from ..strategies.row_shards import row_shards_in
from .adamw import AdamW


def check_optimizer(
    optim: AdamW, sharding: Sharding, model: nn.Module, objective: nn.Module, scaler: Any = None
) -> None:
    """Refuses an optimizer that would differ or fail under the strategy or the precision.

    Raises:
        ValueError: its update needs whole tensors, and ranks have pieces or rows of them; it could
            not be resumed; it takes a backward pass that the strategy or a gradient scaler would
            not know; or the scaler would skip steps of some ranks only.
    """
    if optim.own_backward and (scaler is not None or not sharding.knows_extra_backward):
        raise ValueError(
            f"optim names {optim.name}, which takes a backward pass of its own: neither "
            "ZeRO nor the gradient scaler of 16-mixed knows it; use trainer.strategy=ddp or fsdp2 "
            "with bf16-mixed or 32-true, or another optimizer"
        )
    if (
        optim.own_backward
        and sharding.gathers_in_forward
        and any(True for _ in objective.parameters())
    ):
        raise ValueError(
            f"optim names {optim.name}, and the objective has parameters of its "
            "own: under fsdp2 only those of the model can be used; use strategy=ddp"
        )
    if optim.own_shapes and sharding.cuts_states:
        raise ValueError(
            f"optim names {optim.name}, whose factored moments have shapes of their own, "
            "and FSDP2 resumes from moments that are cut like their parameters: use "
            "trainer.strategy=ddp, or another optimizer"
        )
    if optim.whole_tensors and sharding.cuts_inside_tensors:
        raise ValueError(
            f"optim names {optim.name}, which needs whole tensors, and ZeRO cuts them "
            "up: use trainer.strategy=ddp, or AdamW or Lion"
        )
    names = [f"objective.{name}" for name in row_shards_in(objective)]
    shards = ", ".join([*row_shards_in(model), *names])
    if shards and (optim.whole_tensors or optim.own_backward):
        raise ValueError(
            f"optim names {optim.name}, which needs whole tensors or averages gradients "
            f"itself, and each rank keeps rows of its own of {shards}: use AdamW or Lion, or a "
            "term whose parameters are whole"
        )
    if shards and scaler is not None:
        raise ValueError(
            f"trainer.precision=16-mixed skips steps by what each rank finds in its gradients, and "
            f"of {shards} ranks have different rows: use bf16-mixed"
        )
