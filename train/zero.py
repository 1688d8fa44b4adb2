"""DeepSpeed ZeRO 1, 2 and 3 on GPUs and CPUs, with checkpoints like every other strategy's.

In: the stage. Out: a Lightning strategy. A checkpoint is one file with whole fp32 parameters and
whole optimiser states, which any strategy can continue from.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn


class Zero(DeepSpeedStrategy):
    """DeepSpeed ZeRO; Lightning refuses it without CUDA in `setup_environment` only.

    Args:
        stage: 1: shards of the optimiser's state; 2: of gradients too; 3: of parameters too.
    """

    def __init__(self, stage: int):
        super().__init__(stage=stage)
        assert self.config is not None
        # Else the value of trainer.gradient_clip_val is put here, and gradients clipped twice. The
        # batch size is for DeepSpeed's own log; Lightning would look for it in the loader.
        self.config |= {"gradient_clipping": 0.0, "train_micro_batch_size_per_gpu": 1}
        self._groups: list[list[nn.Parameter]] = []

    @property
    def root_device(self) -> torch.device:
        """This process's device; DeepSpeed wants an index even of CPUs."""
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def setup_environment(self) -> None:
        """Sets up the device and the process group."""
        if self._on_cpu:
            prepare_for_cpu()
        DDPStrategy.setup_environment(self)  # type: ignore[arg-type] - the parent's parent

    def setup_distributed(self) -> None:
        """Does what the parent's does, which checks indices of GPUs."""
        if not self._on_cpu:
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._process_group_backend = "gloo"
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(
        self, model: Any, optimizer: Any, lr_scheduler: Any = None
    ) -> Any:
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        return super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimiser."""
        return self.optimizers[0]

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimiser states come from our checkpoints."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Whole parameters in fp32, and buffers; on the host (collective)."""
        module = self.lightning_module
        assert module is not None
        state = module.state_dict()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                state[name] = gathered(self.zero, parameter, lambda flat: flat)
            else:
                state[name] = whole(parameter).cpu()
        return state

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """What `torch.optim.Optimizer.state_dict` gives where nothing is sharded (collective)."""
        numbers = {p: i for i, p in enumerate(p for group in self._groups for p in group)}
        inner = self.zero.optimizer
        groups = [
            {
                **{k: v for k, v in now.items() if k != "params"},
                "params": [numbers[p] for p in group],
            }
            for now, group in zip(inner.param_groups, self._groups, strict=True)
        ]
        example = next(iter(inner.state.values()), {})
        sharded = [key for key, value in example.items() if is_sharded(value)]
        same = {key: value for key, value in example.items() if key not in sharded}
        state = {
            number: same
            | {
                key: gathered(self.zero, p, lambda flat, k=key: inner.state[flat][k])
                for key in sharded
            }
            for p, number in numbers.items()
        }
        return {"state": state if example else {}, "param_groups": groups}

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        """Writes one file, from the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Reads one file, in every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes parameters and buffers from a checkpoint of any strategy."""
        module = self.lightning_module
        assert module is not None
        state = checkpoint["state_dict"]
        for name, buffer in module.named_buffers():
            if name in state:
                buffer.copy_(state[name])
        for name, parameter in module.named_parameters():
            scatter(self.zero, parameter, state[name], lambda flat: flat)
            set_working_copy(parameter, state[name])

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes the optimiser's states from a checkpoint of any strategy."""
        saved = checkpoint["optimizer_states"][0]
        inner = self.zero.optimizer
        for now, before in zip(inner.param_groups, saved["param_groups"], strict=True):
            now.update({k: v for k, v in before.items() if k != "params"})
        for number, parameter in enumerate(p for group in self._groups for p in group):
            for key, value in saved["state"].get(number, {}).items():
                for place in places(self.zero, parameter):
                    own = inner.state[place.flat]
                    if not is_sharded(value):
                        own[key] = value.clone() if isinstance(value, Tensor) else value
                    elif key not in own:
                        own[key] = torch.zeros_like(place.flat, dtype=value.dtype)
                if is_sharded(value):
                    scatter(self.zero, parameter, value, lambda flat, k=key: inner.state[flat][k])


@dataclass(frozen=True)
class Place:
    """Where a stretch of a parameter lies in this rank's flat fp32 partition.

    Attributes:
        flat: the partition, which is what the optimiser steps.
        start: first element in the partition.
        first: first element in the (flattened) parameter.
        count: elements.
    """

    flat: Tensor
    start: int
    first: int
    count: int


def places(zero: Any, parameter: nn.Parameter) -> Iterator[Place]:
    """The stretch of a parameter that this rank steps, if there is one."""
    if hasattr(parameter, "ds_id"):
        if not parameter.requires_grad:
            return
        group, start, count = zero.grad_position[zero.get_param_id(parameter)]
        first = int(count) * dist.get_rank(zero.dp_process_group)
        count = min(int(count), parameter.ds_numel - first)  # type: ignore[operator]
        if count > 0:
            yield Place(zero.fp32_partitioned_groups_flat[group], int(start), first, count)
    elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Place(flat, here.start, there.start, here.numel)


def gathered(zero: Any, parameter: nn.Parameter, values: Callable[[Tensor], Tensor]) -> Tensor:
    """The whole of what ranks keep for a parameter, on the host (collective).

    Args:
        zero: DeepSpeed's optimiser.
        parameter: of the module.
        values: from a flat partition to the values of its elements: itself, or a state.
    """
    shape = getattr(parameter, "ds_shape", parameter.shape)
    own = [(place, values(place.flat)) for place in places(zero, parameter)]
    whole = torch.zeros(shape.numel(), device=parameter.device, dtype=torch.float32)
    for place, found in own:
        whole[place.first : place.first + place.count] = found[place.start :][: place.count]
    dist.all_reduce(whole, group=zero.dp_process_group)
    return whole.view(shape).cpu()


def whole(parameter: nn.Parameter) -> Tensor:
    """What the forward pass reads, on every rank (collective)."""
    if not hasattr(parameter, "ds_id"):
        return parameter.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        return parameter.detach().clone()


def scatter(
    zero: Any, parameter: nn.Parameter, whole: Tensor, values: Callable[[Tensor], Tensor]
) -> None:
    """Writes this rank's stretch of `whole`; the reverse of `gathered`."""
    for place in places(zero, parameter):
        stretch = whole.flatten()[place.first : place.first + place.count]
        values(place.flat)[place.start :][: place.count].copy_(stretch)


def set_working_copy(parameter: nn.Parameter, whole: Tensor) -> None:
    """Sets what the forward pass reads: the parameter, in ZeRO 3 its slice and maybe all of it."""
    if parameter.numel() == whole.numel():
        parameter.copy_(whole.view_as(parameter))
    if (own := getattr(parameter, "ds_tensor", None)) is not None:
        flat = whole.flatten()
        first = own.numel() * dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        stretch = flat[first : first + own.numel()]
        own.data[: len(stretch)].copy_(stretch)


def is_sharded(value: Any) -> bool:
    """Whether an optimiser's state has a value for each element (a step count has not)."""
    return isinstance(value, Tensor) and value.ndim > 0


def prepare_for_cpu() -> None:
    """Keeps DeepSpeed from building C++ at its start."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
