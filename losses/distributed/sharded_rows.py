"""State of which each rank keeps rows of its own for good: parameters, stores, queues.

In: a `RowShard` of all rows, before training. Out: this rank's rows of it. A module declares such
state by this type and nothing else; `train/strategies/row_shards.py` says what follows in a run.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .collectives import divided, gather, world


class RowShard(nn.Parameter):
    """This rank's rows of a parameter; all of them until `cut`.

    Modules read it by `own`, since nothing averages its gradient. State that no gradient trains (a
    store of values by sample, a queue) is made with `requires_grad=False`.
    """

    _total: int | None = None

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return len(self) if self._total is None else self._total


def rows_of(total: int, rank: int, world_size: int) -> slice:
    """The rows of a rank: as many for each as can be, the first ranks having the odd ones."""
    size, odd = divmod(total, world_size)
    first = rank * size + min(rank, odd)
    return slice(first, first + size + (rank < odd))


def cut(shard: RowShard) -> RowShard:
    """Leaves this rank its rows, in place and in memory of their own; once they are cut, nothing.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    total, world_size = shard.total, world()[1]
    if total < world_size:
        raise ValueError(
            f"{total} rows cannot be cut over {world_size} ranks: run fewer processes, or use a "
            "term whose parameters are whole (counterpoint.losses.distillation."
            "cluster_discrimination.ClusterDiscrimination)"
        )
    if world_size > 1 and len(shard) == total:
        shard.data, shard._total = rows_of_this_rank(shard, shard.data), total
    return shard


def cut_rows(module: nn.Module) -> None:
    """Cuts every `RowShard` of a module, and from now on the whole ones that it loads.

    To be called when the process group exists, before an optimizer is made. Training by other
    means than `train` has to tell DDP or FSDP2 to ignore these parameters.

    Raises:
        ValueError: there are fewer rows than ranks.
    """
    for part in module.modules():
        shards = [p for p in part.parameters(recurse=False) if isinstance(p, RowShard)]
        for shard in shards:
            cut(shard)
        if shards:
            part.register_load_state_dict_pre_hook(_cut_loaded)


def _cut_loaded(part: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    for name, parameter in part.named_parameters(prefix.removesuffix("."), recurse=False):
        if isinstance(parameter, RowShard) and name in state:
            state[name] = rows_of_this_rank(parameter, state[name])


def rows_of_this_rank(shard: RowShard, value: Any) -> Any:
    """Returns this rank's rows of what has the whole parameter's shape; anything else as it is."""
    if getattr(value, "shape", None) != (shard.total, *shard.shape[1:]):
        return value
    return value[rows_of(shard.total, *world())].clone()


def own(parameter: RowShard) -> Tensor:
    """This rank's rows on their way into a loss of which each rank computes its share.

    Shares are such that the mean over ranks of gradients is that of the global batch; for rows that
    no other rank has, that mean is taken here.

    Raises:
        ValueError: the rows are those of another number of ranks.
    """
    rank, world_size = world()
    wanted = rows_of(parameter.total, rank, world_size)
    if len(parameter) != wanted.stop - wanted.start:
        raise ValueError(
            f"{len(parameter)} of {parameter.total} rows are kept here, but rank {rank} of "
            f"{world_size} has {wanted.stop - wanted.start}: call "
            "counterpoint.losses.distributed.sharded_rows.cut_rows(module) when the process group "
            "exists"
        )
    return divided(parameter, world_size)


@torch.no_grad()
def whole(parameter: RowShard, values: Tensor | None = None) -> Tensor:
    """The rows of all ranks (collective): of the parameter, or of values of its shape."""
    values = (parameter if values is None else values).detach()
    world_size = world()[1]
    if world_size == 1:
        return values
    parts = [rows_of(parameter.total, rank, world_size) for rank in range(world_size)]
    return gather(values, [rows.stop - rows.start for rows in parts])
