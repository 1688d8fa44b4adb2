"""Adapters for gradients and parameters, of which a rank may hold pieces.

In: parameters whose gradients are final (averaged over ranks, unscaled). Out: global norms, equal
on every rank; gradients scaled, clamped or dropped in place; bounds kept; whole values.
Nothing here waits for the device, except where `drop` says so.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from ...losses.distributed.collectives import world
from ...losses.distributed.sharded_rows import RowShard, whole
from ..distributed import average_gradients
from ..torch_internals import clamp_all, move_toward, norms_of, scale_all

Parameters = Sequence[nn.Parameter]


class Tensors(ABC):
    """One adapter a strategy. Every rank calls the same methods in the same order.

    A parameter without a gradient on this rank (frozen, unused, held by others) has no pieces.
    """

    def begin(self) -> None:  # noqa: B027, most strategies have nothing to look for
        """Finds the gradients of a new step; called before anything is done to them."""

    @abstractmethod
    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """Returns the parts of the gradients that lie on this rank, to be changed in place."""

    @abstractmethod
    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Returns the L2 norm of each group's gradient over all ranks [groups] (collective)."""

    @abstractmethod
    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Returns (weight, gradient) pairs, cut between rows of the first dimension if at all.

        Raises:
            ValueError: the strategy cuts inside rows.
        """

    def fill(self, parameters: Parameters) -> None:
        """Gives parameters that the step has not used the gradient that they have: zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    @torch.no_grad()
    def scale(self, parameters: Parameters, factor: Tensor) -> None:
        """Multiplies the gradients by `factor` []."""
        if pieces := self.pieces(parameters):
            scale_all(pieces, factor.to(pieces[0].device))

    @torch.no_grad()
    def clamp(self, parameters: Parameters, limit: float) -> None:
        """Clamps every element of the gradients to [-limit, limit]."""
        if pieces := self.pieces(parameters):
            clamp_all(pieces, limit)

    def drop(self, optimizer: torch.optim.Optimizer, parameters: Parameters, skip: Tensor) -> None:
        """Makes the coming step change neither weights nor state where `skip` [] is true.

        Fused optimisers read a flag on the device; for the others the host has to look (one
        synchronisation), and they pass over parameters without gradients.
        """
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        elif bool(skip):
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def bound(self, parameter: nn.Parameter, low: float, high: float) -> None:
        """Keeps a parameter within bounds, wherever its values are kept."""
        local(parameter).clamp_(low, high)

    def value(self, tensor: Tensor) -> Tensor:
        """Returns a whole parameter, or what was computed from it, on every rank (collective)."""
        return tensor.detach()

    def release(self, module: nn.Module) -> None:  # noqa: B027, most gather nothing
        """Cuts again what a forward pass left gathered for a backward pass that does not come."""

    def average_gradients(self, parameters: Parameters) -> None:  # noqa: B027, most have averaged
        """Averages over ranks the gradients of a backward pass that no wrapper saw (collective)."""

    @torch.no_grad()
    def follow(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]], weight: Tensor) -> None:
        """Moves averages by `weight` [] of the way to what each follows (collective).

        Raises:
            ValueError: an average is kept in 16 bits, where its small steps are lost.
        """
        averages: list[Tensor] = [average for average, _ in pairs]
        if any(average.dtype.itemsize < 4 for average in averages):
            raise ValueError(
                "the ema would be kept in 16 bits, where its small steps are lost: use a "
                "trainer.precision with mixed in its name"
            )
        if averages:
            move_toward(
                [local(average) for average in averages],
                [local(online.detach()) for _, online in pairs],
                weight,
            )


class LocalTensors(Tensors):
    """One process, or DDP: every rank holds everything, except for row shards."""

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        return [p.grad for p in parameters if p.grad is not None]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Computes them from the same numbers on each rank; squares of row shards are added up."""
        if not any(isinstance(p, RowShard) for group in groups for p in group):
            return torch.stack([norm_of(self.pieces(group), groups[0][0]) for group in groups])
        return add_up_norms(groups)

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        return [(p.detach(), p.grad) for p in parameters if p.grad is not None]

    def value(self, tensor: Tensor) -> Tensor:
        return whole(tensor) if isinstance(tensor, RowShard) else tensor.detach()

    def average_gradients(self, parameters: Parameters) -> None:
        average_gradients(parameters)


class ShardedTensors(Tensors):
    """FSDP2: parameters and gradients are DTensors; one all-reduce of a vector for norms.

    Where several groups of ranks hold a copy each (HSDP), every copy has the same gradients.

    Parameters outside every sharded module are counted once.
    """

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        return [local(p.grad) for p in parameters if p.grad is not None]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Adds up squares over all ranks: copies that each took a sum could come to differ."""
        return add_up_norms(groups)

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Shards of whole rows (FSDP2 cuts the first dimension unless told otherwise)."""
        pairs = [(p, p.grad) for p in parameters if p.grad is not None]
        if any(isinstance(p, DTensor) and p.placements[-1] != Shard(0) for p, _ in pairs):
            raise ValueError("grad_clip: AGC needs parameters sharded along their first dimension")
        return [(local(p.detach()), local(g)) for p, g in pairs]

    def value(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, RowShard):
            return whole(tensor)
        local_value = tensor.detach()
        return local_value.full_tensor() if isinstance(local_value, DTensor) else local_value

    def release(self, module: nn.Module) -> None:
        """Cuts again a root, and layers, that FSDP2 leaves whole after a forward pass."""
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()


def add_up_norms(groups: Sequence[Parameters]) -> Tensor:
    """Returns the L2 norm of each group's gradient [groups], adding up squares over all ranks.

    Gradients that every rank has, or each of several groups of ranks, are counted once.
    """
    sharded, copied = [], []
    for group in groups:
        by_copies: dict[int, list[Tensor]] = {}
        for parameter in group:
            if (grad := parameter.grad) is not None:
                by_copies.setdefault(num_copies(parameter), []).append(local(grad))
        everywhere = by_copies.pop(world()[1], []) if world()[1] > 1 else []
        squares = [norm_of(g, groups[0][0]).square() / n for n, g in by_copies.items()]
        sharded.append(sum(squares, norm_of([], groups[0][0])))
        copied.append(norm_of(everywhere, groups[0][0]).square())
    total = torch.stack(sharded)
    if world()[1] > 1:
        dist.all_reduce(total)
    return (total + torch.stack(copied)).sqrt()


def num_copies(parameter: nn.Parameter) -> int:
    """Returns how many ranks hold the same rows of a parameter."""
    if isinstance(parameter, RowShard):
        return 1
    if not isinstance(parameter, DTensor):
        return world()[1]
    mesh = parameter.device_mesh
    replicated = (d for d, p in enumerate(parameter.placements) if isinstance(p, Replicate))
    return math.prod(mesh.size(dimension) for dimension in replicated)


@torch.no_grad()
def norm_of(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Returns the L2 norm of all elements, in float32 at least [].

    Ranks without any of the tensors must give a zero of the same type: `like` says which.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not tensors:
        return torch.zeros((), dtype=dtype, device=like.device)
    norms = [norm.to(like.device) for norm in norms_of(tensors, dtype)]
    return torch.linalg.vector_norm(torch.stack(norms))


def local(tensor: Tensor) -> Tensor:
    """Returns this rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
