"""DeepSpeed ZeRO 1, 2 and 3 on GPUs and CPUs, with checkpoints like every other strategy's.

In: the stage. Out: a Lightning strategy. A checkpoint has fp32 parameters and optimizer states,
whole or in pieces, which any strategy can continue from.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from torch import Tensor, nn

from ...models.distributed_checkpoint import StoredTensor
from ...models.weights import read_torch
from .base import Sharding
from .deepspeed_ema import ZeroAverage
from .deepspeed_internals import (
    find_fragments,
    gather,
    gather_layers_at_once,
    gather_working_copy,
    load_scaler_state,
    piece,
    prepare_for_cpu,
    scaler_state,
    scatter,
    set_working_copy,
)
from .deepspeed_tensors import ZeroTensors
from .pieces import whole_of
from .row_shards import refuse_row_shards


class Autocast(DeepSpeedPrecision):
    """`bf16-mixed` as under every other strategy: fp32 parameters, and bf16 where autocast says so.

    What DeepSpeed makes of it, 16-bit parameters beside fp32 ones, is what `bf16-true` gives.

    Args:
        strategy: what the device is read from.
    """

    def __init__(self, strategy: Strategy):
        super().__init__("bf16-mixed")
        self.strategy = strategy
        self._desired_dtype = torch.float32

    def forward_context(self) -> AbstractContextManager[Any]:
        """Turns autocast on without its cache, which in stage 3 would keep all parameters whole."""
        device = self.strategy.root_device.type
        return torch.autocast(device, torch.bfloat16, cache_enabled=False)


class Zero(Sharding, DeepSpeedStrategy):
    """DeepSpeed ZeRO; Lightning refuses it without CUDA in `setup_environment` only.

    Args:
        stage: 1: shards of the optimizer's state; 2: of gradients too; 3: of parameters too.
        offload: keeps the optimizer's state and the fp32 parameters in the host's memory, and steps
            there (ZeRO-Offload, Ren et al. 2021), with the run's own optimizer.

    Attributes:
        average: the moving averages, from setup on.
    """

    cuts_inside_tensors = True
    knows_extra_backward = False

    def __init__(self, stage: int, offload: bool = False):
        super().__init__(stage=stage, offload_optimizer=offload)
        assert self.config is not None
        # Else the value of trainer.gradient_clip_val is put here, and gradients clipped twice. The
        # batch size is for DeepSpeed's own log; Lightning would look for it in the loader.
        self.config |= {"gradient_clipping": 0.0, "train_micro_batch_size_per_gpu": 1}
        self.config["zero_force_ds_cpu_optimizer"] = False  # another Adam, which is built first
        self.average: ZeroAverage | None = None
        self._groups: list[list[nn.Parameter]] = []

    @property
    def precision_plugin(self) -> Precision:
        """Lightning's plugin for the precision; setting it adapts DeepSpeed's configuration."""
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, precision_plugin: Precision | None) -> None:
        precision = getattr(precision_plugin, "precision", None)
        if precision == "16-mixed":
            raise ValueError(
                "trainer.precision=16-mixed does not go with ZeRO: use bf16-mixed, or 16-true, "
                "which under ZeRO has 16-bit parameters beside fp32 ones and a loss scaler"
            )
        if precision == "bf16-mixed":
            assert self.config is not None
            self.config["bf16"] = {"enabled": False}
            # Else its engine turns autocast off. Gradients are still sent in fp32.
            autocast = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
            self.config["torch_autocast"] = autocast
            precision_plugin = Autocast(self)
        self._precision_plugin = precision_plugin

    @property
    def root_device(self) -> torch.device:
        """This process's device; DeepSpeed wants an index even of CPUs."""
        return torch.device("cpu", 0) if self._on_cpu else super().root_device

    def shard(
        self,
        module: nn.Module,
        parts: Mapping[nn.Module, Sequence[nn.Module]],
        num_calls: int = 1,
    ) -> None:
        """Leaves all to DeepSpeed, which would average row shards."""
        refuse_row_shards(module, type(self).__name__)

    def tensors(self) -> ZeroTensors:
        return ZeroTensors(self.zero, self.average)

    def prepare_compiled(self, layers: Iterable[nn.Module]) -> None:
        gather_layers_at_once(layers)

    def setup_environment(self) -> None:
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
        engine, zero = super()._setup_model_and_optimizer(model, optimizer, lr_scheduler)
        averaged = getattr(self.lightning_module, "averaged", None)
        self.average = None if averaged is None else ZeroAverage(zero, averaged())
        return engine, zero

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer."""
        return self.optimizers[0]

    @property
    def _on_cpu(self) -> bool:
        return isinstance(self.accelerator, CPUAccelerator)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: optimizer states come from our checkpoints."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns parameters in fp32, whole on the host or in pieces, and buffers (collective)."""
        module = self.lightning_module
        assert module is not None
        state = module.state_dict()
        for name, parameter in module.named_parameters():
            if self.average is not None and parameter in self.average:
                of_average = self.average.piece if self.saves_pieces else self.average.gather
                state[name] = of_average(parameter)
            elif parameter.requires_grad:
                state[name] = self._values(parameter, lambda flat: flat)
            else:
                state[name] = gather_working_copy(parameter).cpu()
        return state

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns the optimizer's `state_dict`, whole as if nothing were sharded or in pieces."""
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
        # A step count each: an optimizer that loads one shared by all would count every parameter.
        state = {
            number: {k: v.clone() if isinstance(v, Tensor) else v for k, v in same.items()}
            | {key: self._values(p, lambda flat, k=key: inner.state[flat][k]) for key in sharded}
            for p, number in numbers.items()
        }
        saved = {"state": state if example else {}, "param_groups": groups}
        if self.zero.dtype == torch.float16:  # others have no use for it, and pass over it
            saved["loss_scaler"] = scaler_state(self.zero)
        return saved

    def _values(self, parameter: nn.Parameter, values: Callable[[Tensor], Tensor]) -> Any:
        """Returns what ranks keep for a parameter: all of it (collective), or this rank's piece."""
        return (piece if self.saves_pieces else gather)(self.zero, parameter, values)

    def save_checkpoint(self, checkpoint: Any, filepath: Any, storage_options: Any = None) -> None:
        """Writes one file, from the first process."""
        Strategy.save_checkpoint(self, checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Opens a checkpoint, of which each process reads what it needs."""
        return read_torch(checkpoint_path, mmap=True)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads parameters and buffers from a checkpoint of any strategy."""
        module = self.lightning_module
        assert module is not None
        state = checkpoint["state_dict"]
        for name, buffer in module.named_buffers():
            if name in state:
                buffer.copy_(whole_of(state[name]))
        for name, parameter in module.named_parameters():
            if self.average is not None and parameter in self.average:
                self.average.load(parameter, state[name])
                continue
            scatter(self.zero, parameter, state[name], lambda flat: flat)
            set_working_copy(parameter, state[name])

    @torch.no_grad()
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads the optimizer's states from a checkpoint of any strategy."""
        saved = checkpoint["optimizer_states"][0]
        inner = self.zero.optimizer
        for now, before in zip(inner.param_groups, saved["param_groups"], strict=True):
            now.update({k: v for k, v in before.items() if k != "params"})
        if self.zero.dtype == torch.float16:
            load_scaler_state(self.zero, saved.get("loss_scaler", {}))
        for number, parameter in enumerate(p for group in self._groups for p in group):
            for key, value in saved["state"].get(number, {}).items():
                for fragment in find_fragments(self.zero, parameter):
                    state, flat = inner.state[fragment.flat], fragment.flat
                    if not is_sharded(value):
                        state[key] = value
                        if isinstance(value, Tensor):  # fused: counted on the device
                            fused = inner.defaults.get("fused")
                            state[key] = value.to(flat.device if fused else value.device, copy=True)
                    elif key not in state:
                        state[key] = torch.zeros_like(flat, dtype=value.dtype)
                if is_sharded(value):
                    scatter(self.zero, parameter, value, lambda flat, k=key: inner.state[flat][k])


def is_sharded(value: Any) -> bool:
    """Whether an optimizer's state has a value for each element (a step count has not)."""
    return isinstance(value, Tensor | StoredTensor) and value.ndim > 0
