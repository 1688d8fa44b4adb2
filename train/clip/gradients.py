"""What clippers see of a step's gradients, whatever strategy holds them.

In: parameters whose gradients are final (averaged over ranks, unscaled). Out: global norms, equal
on every rank; gradients scaled in place. Nothing here waits for the device, except where `drop`
says so.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

Parameters = Sequence[nn.Parameter]


class Gradients(ABC):
    """One adapter a strategy. Every rank calls the same methods in the same order.

    A parameter without a gradient on this rank (frozen, unused, held by others) has no pieces.
    """

    def begin(self) -> None:  # noqa: B027, most strategies have nothing to look for
        """Looks at the gradients of a new step; to be called first."""

    @abstractmethod
    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """The parts of the gradients that lie on this rank, to be changed in place."""

    @abstractmethod
    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """L2 norm of each group's gradient over all ranks [groups]."""

    @abstractmethod
    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """(weight, gradient) on this rank, cut between rows of the first dimension if at all.

        Raises:
            ValueError: the strategy cuts inside rows.
        """

    @torch.no_grad()
    def scale(self, parameters: Parameters, factor: Tensor) -> None:
        """Multiplies the gradients by `factor` []."""
        if pieces := self.pieces(parameters):
            torch._foreach_mul_(pieces, factor.to(pieces[0].device))  # type: ignore

    @torch.no_grad()
    def clamp(self, parameters: Parameters, limit: float) -> None:
        """Clamps every element to [-limit, limit]."""
        if pieces := self.pieces(parameters):
            torch._foreach_clamp_min_(pieces, -limit)  # type: ignore
            torch._foreach_clamp_max_(pieces, limit)  # type: ignore

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


class LocalGradients(Gradients):
    """One process, or DDP: every rank holds all gradients."""

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """All gradients."""
        return [p.grad for p in parameters if p.grad is not None]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Computed by each rank from the same numbers."""
        return torch.stack([norm_of(self.pieces(g), g[0].device) for g in groups])

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """All of them."""
        return [(p.detach(), p.grad) for p in parameters if p.grad is not None]


class ShardedGradients(Gradients):
    """FSDP2: gradients are DTensors; one all-reduce of a vector a step.

    Parameters outside every sharded module are counted once.
    """

    def pieces(self, parameters: Parameters) -> list[Tensor]:
        """This rank's shards."""
        return [local(p.grad) for p in parameters if p.grad is not None]

    def norms(self, groups: Sequence[Parameters]) -> Tensor:
        """Adds up squares over the ranks of the mesh."""
        meshes = {p.device_mesh for g in groups for p in g if isinstance(p, DTensor)}
        assert len(meshes) == 1 and next(iter(meshes)).ndim == 1, "one flat mesh holds all shards"
        own, shared = [], []
        for group in groups:
            gradients = [p.grad for p in group if p.grad is not None]
            cut = [g.to_local() for g in gradients if isinstance(g, DTensor)]
            whole = [g for g in gradients if not isinstance(g, DTensor)]
            device = group[0].device
            own.append(norm_of(cut, device).square())
            shared.append(norm_of(whole, device).square())
        total = torch.stack(own)
        dist.all_reduce(total, group=meshes.pop().get_group())
        return (total + torch.stack(shared)).sqrt()

    def rows(self, parameters: Parameters) -> list[tuple[Tensor, Tensor]]:
        """Shards of whole rows (FSDP2 cuts the first dimension unless told otherwise)."""
        found = [(p, p.grad) for p in parameters if p.grad is not None]
        if any(isinstance(p, DTensor) and p.placements != (Shard(0),) for p, _ in found):
            raise ValueError("clip: AGC needs parameters sharded along their first dimension")
        return [(local(p.detach()), local(g)) for p, g in found]


@torch.no_grad()
def norm_of(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """L2 norm of all elements, in float32 at least []."""
    if not tensors:
        return torch.zeros((), device=device)
    dtype = reduce(torch.promote_types, {t.dtype for t in tensors}, torch.float32)
    norms = torch._foreach_norm(list(tensors), 2.0, dtype=dtype)  # type: ignore
    return torch.linalg.vector_norm(torch.stack([norm.to(device) for norm in norms]))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradients_of(parameters: Iterable[nn.Parameter]) -> Gradients:
    """The adapter for parameters of one process, DDP or FSDP2."""
    sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    return ShardedGradients() if sharded else LocalGradients()
