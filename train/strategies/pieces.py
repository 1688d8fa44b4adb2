"""What a rank holds of a tensor, on its way into a checkpoint and out of one.

In: shards of parameters and states; or tensors of a checkpoint, at hand or in its files. Out: the
piece that this rank writes; the range that it needs, of which no more is read.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from ...losses.distributed.sharded_rows import rows_of
from ...models.distributed_checkpoint import StoredTensor


@dataclass(frozen=True)
class Piece:
    """A part of a tensor that this rank writes, and no other.

    Attributes:
        value: rows of the whole tensor, or elements of it as a vector; empty: others write them.
        shape: of the whole tensor.
        first: number of the first row, or element, in the whole.
    """

    value: Tensor
    shape: torch.Size
    first: int

    @property
    def first_element(self) -> int:
        """The number of the first element in the flattened tensor."""
        is_rows = self.value.ndim == len(self.shape) and self.shape
        return self.first * math.prod(self.shape[1:]) if is_rows else self.first


def piece_of(value: Any) -> Any:
    """Returns what this rank writes of a `DTensor` cut between rows; anything else as it is.

    Ranks that hold the same rows write a part of them each.
    """
    if not isinstance(value, DTensor):
        return value
    rows, first = value.to_local().detach(), first_row(value)
    mesh = value.device_mesh
    for dimension, placement in enumerate(value.placements):
        if isinstance(placement, Replicate):
            own = rows_of(len(rows), mesh.get_local_rank(dimension), mesh.size(dimension))
            rows, first = rows[own], first + own.start
    return Piece(rows, value.shape, first)


def first_row(tensor: DTensor) -> int:
    """Returns the number of the first row that this rank holds.

    Raises:
        ValueError: it is not cut between rows.
    """
    mesh, rows = tensor.device_mesh, len(tensor)
    first = 0
    for dimension, placement in enumerate(tensor.placements):
        if placement.is_shard(0):
            first = min(
                math.ceil(rows / mesh.size(dimension)) * mesh.get_local_rank(dimension), rows
            )
        elif not isinstance(placement, Replicate):
            raise ValueError(f"a tensor is cut as {tensor.placements}, and not between its rows")
    return first


def elements_of(value: Tensor | StoredTensor, first: int, count: int) -> Tensor:
    """Returns `count` elements of a flattened tensor, and reads no more than these."""
    if isinstance(value, StoredTensor):
        return value.range(first, first + count)
    return value.flatten()[first : first + count]


def whole_of(value: Any) -> Any:
    """Returns a tensor of a checkpoint that may still lie in its files."""
    return value.whole() if isinstance(value, StoredTensor) else value
