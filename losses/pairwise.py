"""What the terms over all pairs of the global batch have in common: one side travels.

In: features. Out: the mean of the losses by sample. Each rank compares its images with all texts,
block by block; a subclass says how.
"""

from abc import abstractmethod
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from .exchange import AllGather, Exchange
from .term import Term
from .tiles import TILE_BYTES


class Pairwise(Term):
    """A loss over all image-text pairs.

    Args:
        exchange: how the other ranks' texts arrive; the default is exact.
        tile_bytes: memory of one block of logits.

    Attributes:
        name: of the value in reports.
    """

    name: str

    def __init__(self, exchange: Exchange | None = None, tile_bytes: int = TILE_BYTES):
        super().__init__()
        self.exchange = exchange or AllGather()
        self.tile_bytes = tile_bytes

    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns `{NAME: value}`, this rank's share."""
        # Every rank has as many rows, so that a mean of means is the mean over the global batch.
        return {self.name: self.per_sample(features, batch).mean()}

    @abstractmethod
    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"]:
        """Returns the loss of each of this rank's samples; see `Term.per_sample`."""
