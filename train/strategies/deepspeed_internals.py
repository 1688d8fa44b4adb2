"""All that is read of DeepSpeed's private parts, each with a test: an upgrade opens this file.

In: DeepSpeed's ZeRO optimizer (`engine.optimizer`) and parameters of the module. Out: this rank's
fragments of fp32 partitions and of gradients, whole values put together from all ranks, and the
reverse.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...models.distributed_checkpoint import StoredTensor
from .pieces import Piece, elements_of, whole_of

# The state of a dynamic loss scaler.
SCALER = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class Fragment:
    """Where a part of a parameter lies in this rank's flat fp32 partition.

    Attributes:
        flat: the partition, which is what the optimizer steps.
        start: first element in the partition.
        first: first element in the (flattened) parameter.
        count: elements.
    """

    flat: Tensor
    start: int
    first: int
    count: int

    def of_partition(self, values: Tensor) -> Tensor:
        """Returns the fragment of the partition, or of a state with a value for each element."""
        return values[self.start : self.start + self.count]

    def of_parameter(self, whole: Tensor) -> Tensor:
        """Returns the fragment of a whole tensor of the parameter's size."""
        return whole.flatten()[self.first : self.first + self.count]


def find_fragments(zero: Any, parameter: nn.Parameter) -> Iterator[Fragment]:
    """Finds the fragment of a parameter that this rank steps, if there is one."""
    if hasattr(parameter, "ds_id"):  # stage 3
        if not parameter.requires_grad:
            return
        group, start, count = zero.grad_position[zero.get_param_id(parameter)]
        first = int(count) * dist.get_rank(zero.dp_process_group)
        count = min(int(count), parameter.ds_numel - first)  # type: ignore[operator]
        if count > 0:
            yield Fragment(zero.fp32_partitioned_groups_flat[group], int(start), first, count)
    elif (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
        master, working = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        yield Fragment(flat, master.start, working.start, master.numel)


def find_gradients(zero: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Finds this rank's pieces of gradients, after a backward pass: DeepSpeed makes new ones."""
    if hasattr(zero, "fp16_groups"):
        yield from _find_gradients_stage3(zero)
        return
    for i, parameters in enumerate(zero.params_in_partition):
        rank = dist.get_rank(group=zero.real_dp_process_group[i])
        offsets = zero.grad_partition_insertion_offset[i][rank]
        owners = {int(offsets[zero.get_param_id(p)]): p for p in parameters}
        if zero.cpu_offload:
            flat = zero.single_partition_of_fp32_groups[i].grad
            ends = [*sorted(owners)[1:], flat.numel()] if owners else []
            for start, end in zip(sorted(owners), ends, strict=True):
                yield owners[start], flat[start:end]
            continue
        start = 0
        for piece in zero.averaged_gradients[i]:
            if start in owners:  # padding has no parameter
                yield owners[start], piece
            start += piece.numel()


def _find_gradients_stage3(zero: Any) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for i, parameters in enumerate(zero.fp16_groups):
        if not zero.offload_optimizer:
            yield from zip(parameters, zero.averaged_gradients[i], strict=True)
            continue
        flat = zero.fp32_partitioned_groups_flat[i].grad
        for parameter in parameters:
            _, start, num_elements = zero.grad_position[zero.get_param_id(parameter)]
            yield parameter, flat.narrow(0, int(start), int(num_elements))


def all_reduce(zero: Any, tensor: Tensor) -> None:
    """Adds up a tensor over the ranks that hold partitions, in place (collective)."""
    dist.all_reduce(tensor, group=zero.dp_process_group)


def gather(zero: Any, parameter: nn.Parameter, values: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns the whole of what ranks keep for a parameter, on the host (collective).

    `values` takes a flat partition to the values of its elements: itself, or a state.
    """
    shape = whole_shape(parameter)
    whole = torch.zeros(shape.numel(), device=meeting_device(), dtype=torch.float32)
    for fragment in find_fragments(zero, parameter):
        fragment.of_parameter(whole).copy_(fragment.of_partition(values(fragment.flat)))
    all_reduce(zero, whole)
    return whole.view(shape).cpu()


def piece(zero: Any, parameter: nn.Parameter, values: Callable[[Tensor], Tensor]) -> Piece:
    """Returns what this rank keeps for a parameter, in fp32; `values` as for `gather`."""
    for fragment in find_fragments(zero, parameter):
        kept = fragment.of_partition(values(fragment.flat))
        return Piece(kept.detach().float(), whole_shape(parameter), fragment.first)
    return Piece(torch.empty(0), whole_shape(parameter), 0)


def meeting_device() -> torch.device:
    """Returns this process's device, which collectives take, wherever the parameters are."""
    from deepspeed.accelerator import get_accelerator

    accelerator: Any = get_accelerator()
    return torch.device(accelerator.current_device_name())


def scatter(
    zero: Any,
    parameter: nn.Parameter,
    whole: Tensor | StoredTensor,
    values: Callable[[Tensor], Tensor],
) -> None:
    """Writes this rank's fragment of `whole`; the reverse of `gather` and `piece`."""
    for fragment in find_fragments(zero, parameter):
        own = elements_of(whole, fragment.first, fragment.count)
        fragment.of_partition(values(fragment.flat)).copy_(own)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Returns the shape of a parameter that stage 3 may have emptied."""
    return getattr(parameter, "ds_shape", parameter.shape)


def working_slice(parameter: nn.Parameter) -> Tensor | None:
    """Returns this rank's flat slice of what a forward pass reads; None where it is not cut."""
    cut = getattr(parameter, "ds_tensor", None)
    return None if cut is None else cut.data


def gather_working_copy(tensor: Tensor) -> Tensor:
    """Returns what a forward pass reads, on every rank (collective)."""
    if not hasattr(tensor, "ds_id"):
        return tensor.detach()
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        return tensor.detach().clone()


def set_working_copy(parameter: nn.Parameter, whole: Tensor | StoredTensor) -> None:
    """Sets what a forward pass reads: the parameter, in stage 3 its slice and maybe all of it."""
    if parameter.numel() == whole.numel():
        parameter.copy_(whole_of(whole).view_as(parameter))
    if (cut := working_slice(parameter)) is not None:
        first = cut.numel() * dist.get_rank(parameter.ds_process_group)  # type: ignore[attr-defined]
        values = elements_of(whole, first, min(cut.numel(), max(whole.numel() - first, 0)))
        cut[: len(values)].copy_(values)


def scaler_state(zero: Any) -> dict[str, Any]:
    """Returns the state of the loss scaler."""
    scaler = vars(zero.loss_scaler)
    return {name: scaler[name] for name in SCALER if name in scaler}


def load_scaler_state(zero: Any, state: Mapping[str, Any]) -> None:
    """Takes back what `scaler_state` gave."""
    vars(zero.loss_scaler).update(state)


def gather_layers_at_once(layers: Iterable[nn.Module]) -> None:
    """Makes stage 3 gather a layer's parameters before its graph runs, not one by one inside of it.

    Its gradients are still sent one by one: DeepSpeed would send a leaf's at each of its calls, and
    a layer is called for every part of the batch.
    """
    from deepspeed.runtime.zero import stage3
    from deepspeed.utils import set_z3_leaf_module

    for layer in layers:
        set_z3_leaf_module(layer, True)
    stage3.z3_leaf_parameter = lambda parameter: False


def prepare_for_cpu() -> None:
    """Keeps DeepSpeed from building C++ at its start."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
