"""Cluster discrimination with prototypes cut over ranks (Partial FC): for a million clusters.

The loss is that of `clusters`. A rank keeps the prototypes of some clusters for good and compares
the samples of all ranks with them, tile by tile; softmaxes are completed by a maximum and a sum
over ranks. What travels are the batch's features and three numbers a sample, never a prototype or
its gradient. An et al., "Killing Two Birds with One Stone: Efficient and Robust Training of Face
Recognition CNNs by Partial FC" (2022).
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from ..components.features import Tensors, full_precision, need
from ..distributed.collectives import highest, total, world
from ..distributed.columns import join
from ..distributed.exchange import AllGather, Local
from ..distributed.sharded_rows import RowShard, cut, own, rows_of
from ..kernels.masks import Different
from ..kernels.pairing import Pairing
from ..kernels.reductions import row_sums
from .cluster_discrimination import ClusterDiscrimination


class ShardedClusters(ClusterDiscrimination):
    """`ClusterDiscrimination`, of whose prototypes each rank has its part.

    They are drawn from `seed` alone, or read, and cut when the ranks are known. A checkpoint has
    them whole, under the same name, so that a run goes on with another number of ranks. For one
    process, DDP and FSDP2.
    """

    prototypes: RowShard

    def _parameter(self, width: int, stored: Float[Tensor, "c d"] | None) -> RowShard:
        """The same on every rank, whatever was drawn before."""
        if stored is not None:
            return cut(RowShard(stored))
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.num_clusters, width, generator=generator, device="cpu")
        return cut(RowShard(drawn * width**-0.5))

    def _losses(self, features: Tensors, cluster: Int64[Tensor, "b"]) -> Float[Tensor, "b"]:
        mine, weights = full_precision(need(features, self.feature, self), own(self.prototypes))
        self._check_width(mine, weights)
        columns = AllGather().open(mine.detach(), cluster)
        ((_, (_, cluster)),) = columns.blocks()
        self._check(cluster)
        rows, scale, here = join(mine, columns), self.scale(), rows_of(self.num_clusters, *world())
        place = cluster - here.start
        is_here = (place >= 0) & (place < len(weights))
        targets = F.normalize(weights[place.clamp(0, len(weights) - 1)], dim=1)
        positive = scale * self.margin((rows * targets).sum(1))
        positive = torch.where(is_here, positive, 0.0)
        compared = self._compared_here(here)
        others = (Different(cluster, compared),)
        pairing = Pairing(Local(), weights=others, tile_bytes=self.tile_bytes)
        negative = row_sums(
            rows, F.normalize(weights[compared - here.start], dim=1), scale, pairing
        )
        # Every sample is at home on one rank, so that no completed sum is empty.
        partial = torch.where(is_here, torch.logaddexp(positive, negative), negative)
        most = highest(partial)
        powers, positive = total(torch.stack([(partial - most).exp(), positive]))
        return columns.own(powers.log() + most - positive)

    def _check(self, cluster: Int64[Tensor, "n"]) -> None:
        super()._check(cluster)
        # Later ones too, without waiting for the device: no rank would take such a sample for its.
        is_known = (cluster < self.num_clusters).all()
        text = f"'{self.cluster}' names a cluster that does not exist"
        torch._assert_async(is_known, text)  # type: ignore[reportPrivateImportUsage]

    def _compared_here(self, here: slice) -> Int64[Tensor, "k"]:
        """Those of the step's clusters whose prototypes are here."""
        if self.num_compared == self.num_clusters:
            return torch.arange(here.start, here.stop, device=self.steps.device)
        drawn = self._compared()
        return drawn[(drawn >= here.start) & (drawn < here.stop)]
