"""What becomes of `RowShard`s in a run: state of which each rank keeps rows of its own.

In: the module. Out: rows that strategies leave alone, and checkpoints in which they are whole, with
the optimizer's states, as if they never were cut.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...losses.distributed.collectives import world
from ...losses.distributed.sharded_rows import (
    RowShard,
    cut_rows,
    rows_of,
    rows_of_this_rank,
    whole,
)
from ..torch_internals import hide_from_ddp
from .pieces import Piece


def row_shards_in(module: nn.Module) -> dict[str, RowShard]:
    """Finds them by name."""
    return {name: p for name, p in module.named_parameters() if isinstance(p, RowShard)}


def shard_rows(module: nn.Module) -> None:
    """Leaves each rank its rows, once the ranks are known; DDP will leave them alone."""
    cut_rows(module)
    if names := list(row_shards_in(module)):
        hide_from_ddp(module, names)


def refuse_row_shards(module: nn.Module, strategy: str) -> None:
    """Refuses row shards under a strategy that would take them for copies."""
    if names := ", ".join(row_shards_in(module)):
        raise ValueError(
            f"{names}: each rank keeps rows of its own, which {strategy} would take for copies; "
            "use trainer.strategy=ddp or fsdp2, or a term whose parameters are whole "
            "(counterpoint.losses.distillation.cluster_discrimination.ClusterDiscrimination)"
        )


def put_rows(
    checkpoint: dict[str, Any],
    module: nn.Module,
    optimizers: Sequence[Any],
    written: Callable[[RowShard, Tensor], Any],
) -> None:
    """Puts parameters and optimizer states into a checkpoint as `written` makes them of rows.

    Collective if that is: `gathered` is, and `piece_of_rows` is not.
    """
    if not (shards := row_shards_in(module)):
        return
    for name, shard in shards.items():
        checkpoint["state_dict"][name] = written(shard, shard)
    for optimizer, saved in zip(optimizers, checkpoint.get("optimizer_states", ()), strict=False):
        for number, shard in _numbered(optimizer):
            if number in saved["state"]:
                # A new dictionary: torch's is the optimizer's own.
                saved["state"][number] = {
                    key: written(shard, value) if _is_like(value, shard) else value
                    for key, value in saved["state"][number].items()
                }


def gathered(shard: RowShard, value: Tensor) -> Tensor:
    """Returns the rows of all ranks (collective), on the first, which writes them.

    On the host: two copies on a machine are one too many.
    """
    value = whole(shard, value)
    return value.cpu() if world()[0] == 0 else value.new_empty(0)


def piece_of_rows(shard: RowShard, value: Tensor) -> Piece:
    """Returns this rank's rows as a piece of all."""
    shape = torch.Size((shard.total, *shard.shape[1:]))
    return Piece(value.detach(), shape, rows_of(shard.total, *world()).start)


def cut_states(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Leaves this rank's rows of whole states; a hook of the optimizer's `load_state_dict`."""
    states = dict(state["state"])
    for number, shard in _numbered(optimizer):
        values = states.get(number, {})
        states[number] = {key: rows_of_this_rank(shard, value) for key, value in values.items()}
    return {**state, "state": states}


def _is_like(value: Any, parameter: nn.Parameter) -> bool:
    """Whether an optimizer's state has a number for each of the parameter's."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _numbered(optimizer: Any) -> Iterator[tuple[int, RowShard]]:
    """Finds row shards by the optimizer's numbers of them."""
    for number, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if isinstance(p, RowShard):
            yield number, p
