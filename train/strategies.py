"""How a run is spread over processes: DDP, FSDP2, or DeepSpeed ZeRO 1, 2, 3.

In: `trainer.strategy` of a run file. Out: what Lightning's Trainer takes. All of them run on GPUs
and on CPUs (with gloo), compute the same thing, and differ in what a rank holds: everything; a
shard of everything (fsdp2, zero3); a shard of the optimiser's state (zero1), and of the gradients
(zero2).
"""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from .zero import Zero


def strategy(name: Any) -> Any:
    """Returns the strategy of that name; what is no name of ours is Lightning's, as it is."""
    if name == "fsdp2":
        return Fsdp2()
    if name in ("zero1", "zero2", "zero3"):
        return Zero(int(name[-1]))
    return name


class Fsdp2(ModelParallelStrategy):
    """FSDP2 over all processes; a checkpoint is one file with whole tensors, like DDP's."""

    def __init__(self):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Every process is a data-parallel one, on however many nodes."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the blocks of a module, then what is left of it (FSDP2).

    Parameters outside a sharded module would drift apart: the single numbers (the logit scale) are
    in the module's own group.
    """
    for block in blocks(module):
        fully_shard(block, mesh=mesh)
    if any(True for _ in module.parameters()):
        fully_shard(module, mesh=mesh)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of transformers and the stages of others: composed modules, equals in a list.

    Inner ones come first.
    """
    for container in reversed(list(module.modules())):
        if not isinstance(container, nn.Sequential | nn.ModuleList):
            continue
        children = list(container)
        if len({type(child) for child in children}) == 1 and any(children[0].children()):
            yield from children
