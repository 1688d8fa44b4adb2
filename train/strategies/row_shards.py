"""Parameters that each rank keeps rows of (`losses.slices.Slice`), in a run.

In: the module. Out: rows that are cut before the strategy sees them, and that DDP leaves alone; and
checkpoints in which they are whole, with the optimiser's states, as if they never were cut.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...losses.distributed.collectives import world
from ...losses.distributed.sharded_rows import RowShard, rows_of, whole
from ..torch_internals import hide_from_ddp


def row_shards_in(module: nn.Module) -> dict[str, RowShard]:
    """By name."""
    return {name: p for name, p in module.named_parameters() if isinstance(p, RowShard)}


def shard_rows(module: nn.Module) -> None:
    """Leaves each rank its rows, once the ranks are known, and tells DDP to leave them alone."""
    for part in module.modules():
        if any(isinstance(p, RowShard) for p in part.parameters(recurse=False)):
            part.cut()  # type: ignore[operator]
    if names := list(row_shards_in(module)):
        hide_from_ddp(module, names)


def put_together(checkpoint: dict[str, Any], module: nn.Module, optimizers: Sequence[Any]) -> None:
    """Puts whole parameters and optimiser states into a checkpoint (collective).

    The first rank's only is complete: it is the one that is written.
    """
    if not (found := row_shards_in(module)):
        return
    for name, parameter in found.items():
        checkpoint["state_dict"][name] = _on_first_rank(whole(parameter))
    for optimizer, saved in zip(optimizers, checkpoint.get("optimizer_states", ()), strict=False):
        for number, parameter in _numbered(optimizer):
            if number in saved["state"]:
                # A new dictionary: torch's is the optimiser's own.
                saved["state"][number] = {
                    key: _on_first_rank(whole(parameter, value))
                    if is_like(value, parameter)
                    else value
                    for key, value in saved["state"][number].items()
                }


def cut_weights(state: dict[str, Any], module: nn.Module) -> None:
    """Leaves this rank's rows of a checkpoint's weights, which may be of any number of ranks."""
    for name, parameter in row_shards_in(module).items():
        if name in state:
            state[name] = _rows(parameter, state[name])


def cut_states(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The same for the optimiser's states; a hook of its `load_state_dict`."""
    states = dict(state["state"])
    for number, parameter in _numbered(optimizer):
        values = states.get(number, {})
        states[number] = {key: _rows(parameter, value) for key, value in values.items()}
    return {**state, "state": states}


def is_like(value: Any, parameter: nn.Parameter) -> bool:
    """Whether an optimiser's state has a number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _numbered(optimizer: Any) -> Iterator[tuple[int, RowShard]]:
    """Slices by the optimiser's numbers of them."""
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if isinstance(p, RowShard):
            yield number, p


def _rows(parameter: RowShard, value: Any) -> Any:
    """This rank's rows of what has the whole parameter's shape; anything else is left as it is."""
    if getattr(value, "shape", None) != (parameter.total, *parameter.shape[1:]):
        return value
    return value[rows_of(parameter.total, *world())].clone()


def _on_first_rank(value: Tensor) -> Tensor:
    """The value on the host, or nothing: two copies on a machine are one too many."""
    return value.cpu() if world()[0] == 0 else value.new_empty(0)
