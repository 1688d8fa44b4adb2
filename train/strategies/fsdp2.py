"""FSDP2 on GPUs and CPUs, with checkpoints like every other strategy's.

In: the module and its layers. Out: a Lightning strategy under which each rank holds a shard of
parameters, gradients and optimizer states.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ...models.weights import read_torch
from .base import Sharding
from .pieces import elements_of, first_row, piece_of, whole_of
from .row_shards import row_shards_in
from .sharded_tensors import ShardedTensors


class Fsdp2(Sharding, ModelParallelStrategy):
    """FSDP2; a checkpoint holds whole tensors, or parts of them, like DDP's.

    Lightning numbers the states of this strategy's optimizer by the model's order, those of all
    others by the groups': here they are numbered by the groups'.

    Args:
        copy_on: how many processes hold a copy of the model together: `all` of them; those of a
            `node`; or a number of neighbours. With several copies (hybrid sharding, HSDP) layers
            are gathered among neighbours only, and gradients are averaged over copies too.
    """

    cuts_states = True
    gathers_in_forward = True

    def __init__(self, copy_on: int | Literal["all", "node"] = "all"):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.copy_on = copy_on
        self._whole: list[FSDPModule] = []

    def shard(
        self,
        module: nn.Module,
        parts: Mapping[nn.Module, Sequence[nn.Module]],
        num_calls: int = 1,
    ) -> None:
        """Shards the layers of each part one by one, then what is left of it.

        Parameters outside a sharded module would drift apart: the single numbers (the logit scale)
        are in the part's own group. Rows that each rank keeps for good stay as they are.

        In bf16-mixed, layers are gathered in bf16, in which they compute; the part's own group is
        gathered in fp32, since a scale of 100 has an error of one in bf16. Layers that a step calls
        several times are gathered once and stay whole until its backward pass has ended.
        """
        super().shard(module, parts, num_calls)
        mesh = self._mesh()
        kept: set[nn.Parameter] = set(row_shards_in(module).values())
        for part, layers in parts.items():
            is_trained = any(parameter.requires_grad for parameter in part.parameters())
            stays_whole = num_calls > 1 and is_trained
            for layer in layers:
                sharded = fully_shard(
                    layer,
                    mesh=mesh,
                    ignored_params=kept,
                    mp_policy=self._precision_of_layers(),
                    reshard_after_forward=not stays_whole,
                )
                if stays_whole:
                    sharded.set_reshard_after_backward(False)
                    self._whole.append(sharded)
            if any(parameter not in kept for parameter in part.parameters()):
                fully_shard(part, mesh=mesh, ignored_params=kept)

    def _mesh(self) -> DeviceMesh:
        """Returns the processes by copy and by part of a copy, or by part where there is one copy.

        Raises:
            ValueError: copies would need other numbers of processes.
        """
        size = {"all": self.world_size, "node": self.num_processes}.get(self.copy_on, self.copy_on)  # type: ignore[arg-type]
        if not isinstance(size, int) or size < 1 or self.world_size % size:
            raise ValueError(
                f"fsdp2: copy_on is {self.copy_on}, which does not divide {self.world_size} "
                "processes into equal groups; take all, node, or a divisor"
            )
        if size == self.world_size:
            return self.device_mesh["data_parallel"]
        shape = self.world_size // size, size
        names = ("replicate", "shard")
        return init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    def _precision_of_layers(self) -> MixedPrecisionPolicy:
        if self.precision_plugin.precision != "bf16-mixed":
            return MixedPrecisionPolicy()
        # Autocast decides on activations: what layers add to stays in fp32.
        return MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Cuts layers again, before anything looks for their gradients."""
        for layer in self._whole:
            layer.reshard()
        super().post_backward(closure_loss)

    def tensors(self) -> ShardedTensors:
        return ShardedTensors()

    def setup_environment(self) -> None:
        """Makes every process a data-parallel one, on however many nodes."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """True: optimizer states come from our checkpoints."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns parameters and buffers as if nothing were sharded (collective), or pieces."""
        if not self.saves_pieces:
            return super().lightning_module_state_dict()
        assert self.lightning_module is not None
        state = self.lightning_module.state_dict()
        return {name: piece_of(value) for name, value in state.items()}

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """Returns the optimizer's `state_dict` as if nothing were sharded (collective), or pieces.

        Only the first rank, which writes them, has what was cut: all ranks of a node together would
        hold as many copies in its memory.
        """
        state = getattr(optimizer, "_optimizer", optimizer).state_dict()
        if self.saves_pieces:
            pieces = {
                number: {name: piece_of(value) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            return {**state, "state": pieces}
        whole: dict[int, dict[str, Any]] = {}
        for number, values in state["state"].items():
            of_parameter = whole.setdefault(number, {})
            for name, value in values.items():
                full = value.full_tensor() if is_sharded(value) else value
                if full is value:
                    of_parameter[name] = value
                elif self.is_global_zero:
                    of_parameter[name] = full.cpu()
        return {**state, "state": whole}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Opens a checkpoint, of which this rank reads no more than its own rows."""
        return read_torch(checkpoint_path, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads parameters and buffers from a checkpoint of any strategy."""
        assert self.lightning_module is not None
        parameters = dict(self.lightning_module.named_parameters())
        state = {
            name: cut_like(parameters[name], value) if name in parameters else value
            for name, value in checkpoint["state_dict"].items()
        }
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads the optimizer's states from a checkpoint of any strategy."""
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
    """Returns this rank's rows of what has a parameter's shape; anything else whole."""
    if not isinstance(parameter, DTensor) or getattr(value, "shape", None) != parameter.shape:
        return whole_of(value)
    own = parameter.to_local()
    first = first_row(parameter) * (parameter.numel() // max(len(parameter), 1))
    rows = elements_of(value, first, own.numel()).view(own.shape)
    return DTensor.from_local(
        # A copy: what is read of a file that is removed later may be gone.
        rows.to(parameter.device, copy=True),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
