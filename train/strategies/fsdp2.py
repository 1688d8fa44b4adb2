"""How a run is spread over processes: DDP, FSDP2, or DeepSpeed ZeRO 1, 2, 3.

In: `trainer.strategy` of a run file. Out: what Lightning's Trainer takes. All of them run on GPUs
and on CPUs (with gloo), compute the same thing, and differ in what a rank holds: everything; a
shard of everything (fsdp2, zero3); a shard of the optimiser's state (zero1), and of the gradients
(zero2). With `_offload` (zero1_offload, zero2_offload, zero3_offload) that state and the fp32
parameters are in the host's memory.
"""

import re
from collections.abc import Iterator, Mapping
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
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ..optim.adamw import AdamW
from .deepspeed import Zero
from .deepspeed_tensors import ZeroShares
from .row_shards import slices_in
from .sharded_tensors import LocalShares, ShardedShares, Shares

# Lightning's own of which each rank holds everything, started as we know it.
USABLE = (
    *("auto", "single_device", "ddp"),
    *("ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true"),
)


def strategy(name: Any) -> Any:
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


def shares_of(strategy: Strategy) -> Shares:
    """How to reach gradients and parameters, after the strategy's setup; once a fit."""
    if isinstance(strategy, DeepSpeedStrategy):
        return ZeroShares(strategy.optimizers[0], getattr(strategy, "average", None))
    return ShardedShares() if isinstance(strategy, ModelParallelStrategy) else LocalShares()


def check_optimiser(strategy: Strategy, optim: AdamW) -> None:
    """Refuses what would not be the same optimiser on pieces of parameters, or not work at all.

    Raises:
        ValueError: its update needs whole tensors, and ZeRO has slices of them; it could not be
            resumed; or it takes a backward pass that ZeRO or a gradient scaler would not know.
    """
    scaled = getattr(strategy.precision_plugin, "scaler", None) is not None
    if optim.own_backward and (scaled or isinstance(strategy, DeepSpeedStrategy)):
        raise ValueError(
            f"optim names {optim.name}, which takes a backward pass of its own: neither "
            "ZeRO nor the gradient scaler of 16-mixed knows it; use trainer.strategy=ddp or fsdp2 "
            "with bf16-mixed or 32-true, or another optimiser"
        )
    if isinstance(strategy, ModelParallelStrategy) and optim.own_shapes:
        raise ValueError(
            f"optim names {optim.name}, whose factored moments have shapes of their own, "
            "and FSDP2 resumes from moments that are cut like their parameters: use "
            "trainer.strategy=ddp, or another optimiser"
        )
    if isinstance(strategy, DeepSpeedStrategy) and optim.whole_tensors:
        raise ValueError(
            f"optim names {optim.name}, which needs whole tensors, and ZeRO cuts them "
            "up: use trainer.strategy=ddp, or AdamW or Lion"
        )


def check_slices(strategy: Strategy, module: nn.Module) -> None:
    """Refuses what would take the rows that each rank keeps for copies of one parameter.

    Raises:
        ValueError: there are such rows, and the strategy would.
    """
    is_zero = isinstance(strategy, DeepSpeedStrategy)
    if isinstance(strategy, SingleDeviceStrategy | DDPStrategy | Fsdp2) and not is_zero:
        return
    if found := slices_in(module):
        raise ValueError(
            f"{', '.join(found)}: each rank keeps rows of its own, which {type(strategy).__name__} "
            "would take for copies; use trainer.strategy=ddp or fsdp2, or a term whose parameters "
            "are whole (counterpoint.losses.distillation.cluster_discrimination.ClusterDiscrimination)"
        )


class Fsdp2(ModelParallelStrategy):
    """FSDP2 over all processes; a checkpoint is one file with whole tensors, like DDP's.

    Lightning numbers optimiser states by the model's order, everyone else by the groups': here they
    are as everywhere.
    """

    def __init__(self):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Every process is a data-parallel one, on however many nodes."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Optimiser states come from our checkpoints."""
        return True

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """What the optimiser's `state_dict` would be were nothing sharded (collective)."""
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        whole = {
            number: {k: v.full_tensor().cpu() if is_sharded(v) else v for k, v in values.items()}
            for number, values in state["state"].items()
        }
        return {**state, "state": whole}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Reads one file, in every process."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Takes parameters and buffers from a checkpoint of any strategy."""
        assert self.lightning_module is not None
        own = dict(self.lightning_module.named_parameters())
        state = {
            name: cut_like(own[name], value) if name in own else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes the optimiser's states from a checkpoint of any strategy."""
        (optimizer,) = self.optimizers
        saved = checkpoint["optimizer_states"][0]
        owners = [p for group in optimizer.param_groups for p in group["params"]]
        state = {
            number: {k: cut_like(owners[number], v) for k, v in values.items()}
            for number, values in saved["state"].items()
        }
        optimizer.load_state_dict({**saved, "state": state})


def is_sharded(value: Any) -> bool:
    """Whether a rank holds only some rows of it."""
    return isinstance(value, DTensor)


def cut_like(parameter: nn.Parameter, value: Any) -> Any:
    """This rank's rows of a whole tensor of a parameter's shape; anything else is left as it is."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return value
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the blocks of a module, then what is left of it (FSDP2).

    Parameters outside a sharded module would drift apart: the single numbers (the logit scale) are
    in the module's own group. Rows that each rank keeps for good stay as they are.
    """
    kept: set[nn.Parameter] = set(slices_in(module).values())
    for block in blocks(module):
        fully_shard(block, mesh=mesh, ignored_params=kept)
    if any(parameter not in kept for parameter in module.parameters()):
        fully_shard(module, mesh=mesh, ignored_params=kept)


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
