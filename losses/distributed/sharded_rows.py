"""Parameters of which each rank keeps rows of its own for good: no rank trains them all.

In: a whole parameter, before training. Out: this rank's rows of it. Strategies leave a `RowShard`
alone; `train/strategies/row_shards.py` counts it in norms and puts it together in checkpoints.
"""

import torch
from torch import Tensor, nn

from .collectives import divided, gather, world


class RowShard(nn.Parameter):
    """This rank's rows of a parameter.

    Modules that have one have a method `cut()`, which is called when the ranks are known, and read
    it by `own`, since nothing averages its gradient. Who trains them with other means than `train`
    has to tell DDP or FSDP2 to ignore it.

    Attributes:
        total: rows of all ranks.
    """

    total: int


def rows_of(total: int, rank: int, world_size: int) -> slice:
    """The rows of a rank: as many for each as can be, the first ranks having the odd ones."""
    size, odd = divmod(total, world_size)
    first = rank * size + min(rank, odd)
    return slice(first, first + size + (rank < odd))


def cut(everything: Tensor) -> RowShard:
    """This rank's rows of a whole parameter, in memory of their own."""
    made = RowShard(everything.detach()[rows_of(len(everything), *world())].clone())
    made.total = len(everything)
    return made


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
            f"{world_size} has {wanted.stop - wanted.start}: make the term anew, or call its cut(),"
            " when the process group exists"
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
