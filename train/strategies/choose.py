"""From the name in `trainer.strategy` to a strategy, and from a strategy to its `Sharding`.

In: `trainer.strategy` as the user wrote it. Out: Lightning's strategy or ours.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    Strategy,
)

from .base import Sharding
from .ddp import Ddp
from .deepspeed import Zero
from .fsdp2 import Fsdp2

PACKAGED: dict[str, Callable[[], Strategy]] = {
    "ddp": Ddp,
    "ddp_bf16": partial(Ddp, reduce_dtype="bf16"),
    "ddp_find_unused_parameters_false": Ddp,
    "ddp_find_unused_parameters_true": partial(Ddp, find_unused_parameters=True),
    "fsdp2": Fsdp2,
    "hsdp": partial(Fsdp2, "node"),
    **{f"zero{stage}": partial(Zero, stage) for stage in (1, 2, 3)},
    **{f"zero{stage}_offload": partial(Zero, stage, offload=True) for stage in (1, 2, 3)},
}
# Lightning's own, of one process.
LIGHTNINGS = ("auto", "single_device")


def choose_strategy(strategy: Any, num_processes: int = 1) -> Any:
    """Returns the strategy of that name, `auto` for so many processes; objects stay as they are.

    Raises:
        ValueError: the name is unknown, the strategy does not answer for its shards (`Sharding`),
            or DeepSpeed is not installed.
    """
    if isinstance(strategy, Strategy):
        sharding_of(strategy)
        return strategy
    if strategy == "auto" and num_processes > 1:
        strategy = "ddp"
    if strategy in LIGHTNINGS:
        return strategy
    if strategy not in PACKAGED:
        raise _unusable(strategy)
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        raise ValueError(
            f"trainer.strategy={strategy} needs DeepSpeed, which is not installed: "
            'pip install -e ".[deepspeed]" in the clone of Counterpoint, or use fsdp2'
        )
    return PACKAGED[strategy]()


def sharding_of(strategy: Strategy) -> Sharding:
    """Returns what answers for a strategy: ours themselves, the defaults for Lightning's own."""
    if isinstance(strategy, Sharding):
        return strategy
    if isinstance(strategy, DeepSpeedStrategy) or not isinstance(
        strategy, SingleDeviceStrategy | DDPStrategy
    ):
        raise _unusable(type(strategy).__name__)
    return Sharding()


def _unusable(name: Any) -> ValueError:
    return ValueError(
        f"trainer.strategy is '{name}'; it is auto, ddp, fsdp2, hsdp, ddp_bf16, zero1, zero2 or "
        "zero3 (these three also with _offload behind the number), or a class derived from "
        "counterpoint.train.strategies.base.Sharding; a Trainer of your own takes "
        'strategy=counterpoint.train.strategies.choose.choose_strategy("fsdp2")'
    )
