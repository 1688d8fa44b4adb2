"""From a strategy's name to the strategy, and its adapter for gradients.

In: `trainer.strategy` as the user wrote it. Out: Lightning's strategy or ours.
"""

import re
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import nn

from .deepspeed import Zero
from .deepspeed_tensors import ZeroTensors
from .fsdp2 import Fsdp2
from .row_shards import row_shards_in
from .sharded_tensors import LocalTensors, ShardedTensors, Tensors

# Lightning's own of which each rank holds everything, started as we know it.
USABLE = (
    *("auto", "single_device", "ddp"),
    *("ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"),
)


def choose_strategy(name: Any) -> Any:
    """Returns the strategy of that name; what is no name of ours is Lightning's, as it is.

    Raises:
        ValueError: nobody knows it, or its pieces of gradients would be taken for all of them; or
            DeepSpeed is not installed.
    """
    if name == "fsdp2":
        return Fsdp2()
    if found := re.fullmatch(r"zero([123])(_offload)?", str(name)):
        if find_spec("deepspeed") is None:
            raise ValueError(
                f"trainer.strategy={name} needs DeepSpeed, which is not installed: "
                'pip install -e ".[deepspeed]" in the clone of Counterpoint, or use fsdp2'
            )
        return Zero(int(found[1]), offload=found[2] is not None)
    is_made = isinstance(name, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy)
    if not is_made and name not in USABLE:
        raise ValueError(
            f"trainer.strategy is '{name}'; it is auto, ddp, fsdp2, zero1, zero2 or zero3 (these "
            "three also with _offload behind the number)"
        )
    return name


def tensors_of(strategy: Strategy) -> Tensors:
    """How to reach gradients and parameters, after the strategy's setup; once a fit."""
    if isinstance(strategy, DeepSpeedStrategy):
        return ZeroTensors(strategy.optimizers[0], getattr(strategy, "average", None))
    return ShardedTensors() if isinstance(strategy, ModelParallelStrategy) else LocalTensors()


def check_row_shards(strategy: Strategy, module: nn.Module) -> None:
    """Refuses what would take the rows that each rank keeps for copies of one parameter.

    Raises:
        ValueError: there are such rows, and the strategy would.
    """
    is_zero = isinstance(strategy, DeepSpeedStrategy)
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy | Fsdp2) and not is_zero:
        return
    if found := row_shards_in(module):
        raise ValueError(
            f"{', '.join(found)}: each rank keeps rows of its own, which {type(strategy).__name__} "
            "would take for copies; use trainer.strategy=ddp or fsdp2, or a term whose parameters "
            "are whole (counterpoint.losses.distillation.cluster_discrimination."
            "ClusterDiscrimination)"
        )
