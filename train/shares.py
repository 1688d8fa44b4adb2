"""Each rank's share of gradients and parameters, in every strategy alike.

In: the trainer, after a backward pass or a step. Out: the pieces of gradients that this rank holds
alone, norms over all ranks, bounds kept, and whole values of parameters. What happens to gradients
happens to the pieces, in place: clipping needs to know no strategy.
"""

from collections.abc import Collection
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from .zero import places


class Shares:
    """One process, and DDP: every rank holds everything."""

    def gradients(self, module: nn.Module) -> dict[str, Tensor]:
        """Returns this rank's piece of each gradient by the parameter's name.

        To be called between the backward pass and the step. Changes made in place are stepped with.
        """
        return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}

    def norm(self, pieces: Collection[Tensor], device: torch.device) -> Tensor:
        """The norm of gradients given by their pieces, the same on every rank (collective).

        Some of the gradients are some of the pieces: all ranks must mean the same parameters.
        """
        return get_total_norm(list(pieces)) if pieces else torch.zeros((), device=device)

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Keeps a parameter within bounds, wherever its values are kept."""
        parameter.clamp_(low, high)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """The whole parameter on every rank (collective)."""
        return parameter.detach()


class ShardedShares(Shares):
    """FSDP2: every parameter is a DTensor of which this rank holds some rows."""

    def gradients(self, module: nn.Module) -> dict[str, Tensor]:
        """See `Shares`."""
        whole = super().gradients(module)
        return {name: cast(DTensor, grad).to_local() for name, grad in whole.items()}

    def norm(self, pieces: Collection[Tensor], device: torch.device) -> Tensor:
        """See `Shares`."""
        squared = super().norm(pieces, device) ** 2
        dist.all_reduce(squared)
        return squared.sqrt()

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """See `Shares`."""
        cast(DTensor, parameter).to_local().clamp_(low, high)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """See `Shares`."""
        return cast(DTensor, parameter.detach()).full_tensor()


class ZeroShares(ShardedShares):
    """ZeRO 1 and 2: whole parameters, but each rank steps a slice of their fp32 copy.

    DeepSpeed keeps a rank's gradients in lists of its own; `parameter.grad` is None.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer

    def gradients(self, module: nn.Module) -> dict[str, Tensor]:
        """See `Shares`."""
        names = {parameter: name for name, parameter in module.named_parameters()}
        return {
            names[parameter]: piece
            for group, params in enumerate(self._owned())
            # The pieces may be followed by padding.
            for parameter, piece in zip(
                params, self.optimizer.averaged_gradients[group], strict=False
            )
        }

    def norm(self, pieces: Collection[Tensor], device: torch.device) -> Tensor:
        """See `Shares`."""
        return super().norm(pieces, device) / self.optimizer.loss_scale

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Clamps the parameter, which every rank holds, and the owner's fp32 copy."""
        parameter.clamp_(low, high)
        for place in places(self.optimizer, parameter):
            place.flat[place.start :][: place.count].clamp_(low, high)

    def value(self, parameter: nn.Parameter) -> Tensor:
        """See `Shares`."""
        return parameter.detach()

    def _owned(self) -> list[list[nn.Parameter]]:
        return self.optimizer.params_in_partition


class Zero3Shares(ZeroShares):
    """ZeRO 3: each rank holds a slice of every parameter, and of its fp32 copy."""

    @torch.no_grad()
    def clamp(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Clamps this rank's slice, its fp32 copy, and the whole value if it is at hand.

        Setting the whole value, as DeepSpeed offers it, fails for parameters of one element.
        """
        super().clamp(parameter, low, high)
        parameter.ds_tensor.data.clamp_(low, high)  # type: ignore[attr-defined]

    def value(self, parameter: nn.Parameter) -> Tensor:
        """See `Shares`."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    def _owned(self) -> list[list[nn.Parameter]]:
        return self.optimizer.fp16_groups


def shares_of(trainer: pl.Trainer) -> Shares:
    """The adapter of the trainer's strategy, after its setup."""
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        optimizer = strategy.optimizers[0]
        return Zero3Shares(optimizer) if strategy.zero_stage_3 else ZeroShares(optimizer)
    return ShardedShares() if isinstance(strategy, ModelParallelStrategy) else Shares()
