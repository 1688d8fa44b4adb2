"""How a run is spread over processes: DDP, FSDP2, or DeepSpeed ZeRO 1, 2, 3.

In: `trainer.strategy` of a run file. Out: what Lightning's Trainer takes. All of them run on GPUs
and on CPUs (with gloo), compute the same thing, and differ in what a rank holds: everything; a
shard of everything (fsdp2, zero3); a shard of the optimiser's state (zero1), and of the gradients
(zero2).
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard


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


class Zero(DeepSpeedStrategy):
    """DeepSpeed ZeRO, also on CPUs.

    Lightning refuses DeepSpeed without CUDA in `setup_environment` only. Clipping is ours.
    """

    def __init__(self, stage: int):
        super().__init__(stage=stage)
        assert self.config is not None
        # Else the value of trainer.gradient_clip_val is put here, and gradients clipped twice. The
        # batch size is for DeepSpeed's own log; Lightning would look for it in the loader.
        self.config |= {"gradient_clipping": 0.0, "train_micro_batch_size_per_gpu": 1}

    @property
    def root_device(self) -> torch.device:
        """This process's device; DeepSpeed wants an index even of CPUs."""
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Sets up the device and the process group."""
        if self._on_cpu:
            prepare_for_cpu()
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Does what the parent's does, which checks indices of GPUs."""
        if not self._on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = "gloo"
        self._init_deepspeed_distributed()

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)


def prepare_for_cpu() -> None:
    """Keeps DeepSpeed from building C++ at its start."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
