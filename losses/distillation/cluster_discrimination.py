"""Cluster discrimination: each image picks the cluster that it was put into before (CLIP-CID).

L = -1/B sum_i log e^{s f(u_i.p_y)} / (e^{s f(u_i.p_y)} + sum_{c in S, c != y} e^{s u_i.p_c}) with
unit rows u and prototypes p, y the sample's cluster, S all clusters or, anew at each step, a random
part of them, and a margin in f. Clusters come from a teacher's features. Yang et al., "CLIP-CID:
Efficient CLIP Distillation via Cluster-Instance Discrimination" (2024), of which no code was
published: the loss is that of An et al., "Unicom" (2023) and "Killing Two Birds with One Stone:
Efficient and Robust Training of Face Recognition CNNs by Partial FC" (2022).
"""

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import WEIGHT, Term
from ..components.features import Tensors, full_precision, need
from ..distributed.collectives import share
from ..distributed.exchange import Local
from ..kernels.keyed_random import mix
from ..kernels.masks import Different
from ..kernels.pairing import Pairing
from ..kernels.reductions import row_sums
from ..scalars import Fixed, Scalar


class Margin(ABC):
    """How the cosine to the own prototype is made harder."""

    @abstractmethod
    def __call__(self, cosine: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Returns what stands in its place."""


class CosMargin(Margin):
    """cos t - m (Wang et al., "CosFace", 2018).

    Args:
        margin: m; 0 for none.
    """

    def __init__(self, margin: float = 0.4):
        self.margin = margin

    def __call__(self, cosine: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        return cosine - self.margin


class ArcMargin(Margin):
    """cos(t + m), and cos t - m sin m where t + m exceeds pi (Deng et al., "ArcFace", 2019).

    Args:
        margin: m in radians.
    """

    def __init__(self, margin: float = 0.5):
        self.margin = torch.tensor(margin, dtype=torch.float64)

    def __call__(self, cosine: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Finite gradients at t = 0 and pi, too."""
        m = self.margin
        sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
        turned = cosine * float(m.cos()) - sine * float(m.sin())
        return torch.where(cosine > -float(m.cos()), turned, cosine - float(m * m.sin()))


class ClusterDiscrimination(Term):
    """Cross-entropy over learned prototypes of clusters, in memory of a tile beside them.

    The prototypes are a parameter like others: whole on each rank under DDP, in pieces under FSDP2
    and ZeRO 3, and whole in every checkpoint. For many of them: `sharded_clusters`.

    Args:
        num_clusters, width: of the prototypes; as wide as the feature.
        centres: file of the teacher's centres that the prototypes start from, as `counterpoint
            cluster` writes it (`centres.safetensors`); None: they are drawn. Where these are wider
            than the student's embeddings, put `Projected` around the term.
        feature: what is put into a cluster, normalised.
        cluster: batch entry, the number of each sample's cluster, such as a sidecar's column; below
            0: none, and the sample does not count. A sidecar has 0 for what it does not hold: put
            `Masked` around the term where it has gaps.
        rate: part of the clusters that a step compares with, its own apart (Partial FC: 0.1).
        margin: of the own cluster's cosine; None: none.
        scale: s, a scalar of its own (None: fixed at 64).
        seed: of the parts.
        tile_bytes: memory of one block of logits; None: 32 MiB, on a GPU 256 MiB.

    Raises:
        ValueError: no clusters, a rate outside 0 to 1, or centres of other numbers.
    """

    steps: Tensor

    def __init__(
        self,
        num_clusters: int,
        width: int,
        feature: str = "image",
        cluster: str = "clusters.id",
        rate: float = 1.0,
        margin: Margin | None = None,
        scale: Scalar | None = None,
        seed: int = 0,
        tile_bytes: int | None = None,
        centres: str | None = None,
    ):
        super().__init__()
        if num_clusters < 1 or not 0 < rate <= 1:
            raise ValueError(
                f"num_clusters={num_clusters} must be 1 at least, rate={rate} above 0, up to 1"
            )
        self.feature, self.cluster = feature, cluster
        self.num_clusters, self.num_compared = num_clusters, max(1, round(rate * num_clusters))
        self._is_checked = False
        self.margin = margin or CosMargin(0.0)
        self.scale = scale or Fixed(64.0)
        self.seed, self.tile_bytes, self.centres = seed, tile_bytes, centres
        # A run that goes on has its prototypes in the checkpoint, and the file may be gone.
        stored = read_centres(centres, num_clusters, width) if centres else None
        self._lacks_centres = centres is not None and stored is None
        self.prototypes = self._parameter(width, stored)
        self.needs = (feature, cluster)
        self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{"clusters": value}`, this rank's share; 0 where no sample has a cluster."""
        self._check_start()
        self.steps += 1
        fix = "store the samples' clusters in a sidecar (data.sidecars)"
        cluster = need(batch, self.cluster, self, fix).long().view(-1)
        losses = self._losses(features, cluster.clamp_min(0))
        weights = (cluster >= 0).to(losses.dtype)
        if WEIGHT in batch:
            weights = weights * batch[WEIGHT]
        return {"clusters": share(losses, weights)}

    @property
    def reads_weight(self) -> bool:
        return True

    def _parameter(self, width: int, stored: Float[Tensor, "c d"] | None) -> nn.Parameter:
        drawn = torch.randn(self.num_clusters, width) * width**-0.5
        return nn.Parameter(drawn if stored is None else stored.to(drawn))

    def _check_start(self) -> None:
        # Once: reading the number of steps waits for the device.
        if self._lacks_centres and not int(self.steps):
            raise ValueError(
                f"the centres '{self.centres}' are not there, and the prototypes were to start "
                "from them: name the centres.safetensors that counterpoint cluster wrote beside "
                "the numbers of the clusters, or remove `centres`"
            )
        self._lacks_centres = False

    def _losses(self, features: Tensors, cluster: Int64[Tensor, "b"]) -> Float[Tensor, "b"]:
        rows, weights = full_precision(need(features, self.feature, self), self.prototypes)
        self._check(cluster)
        self._check_width(rows, weights)
        scale, compared = self.scale(), self._compared()
        positive = scale * self.margin((rows * F.normalize(weights[cluster], dim=1)).sum(1))
        # Every rank has all prototypes: nothing travels, and gradients are averaged as all are.
        others = (Different(cluster, compared),)
        pairing = Pairing(Local(), weights=others, tile_bytes=self.tile_bytes)
        negative = row_sums(rows, F.normalize(weights[compared], dim=1), scale, pairing)
        return torch.logaddexp(positive, negative) - positive

    def _check_width(self, rows: Tensor, weights: Tensor) -> None:
        if rows.shape[1] != weights.shape[1]:
            raise ValueError(
                f"'{self.feature}' has {rows.shape[1]} numbers a sample and {type(self).__name__} "
                f"prototypes of {weights.shape[1]}: set its width to {rows.shape[1]}"
            )

    def _check(self, cluster: Int64[Tensor, "b"]) -> None:
        # Once: reading the value waits for the device.
        if not self._is_checked and len(cluster):
            self._is_checked, highest = True, int(cluster.max())
            if highest >= self.num_clusters:
                raise ValueError(
                    f"'{self.cluster}' names cluster {highest}, the first being 0, of "
                    f"num_clusters={self.num_clusters}: set it to the number of clusters that the "
                    "samples were put into"
                )

    def _compared(self) -> Int64[Tensor, "k"]:
        """Numbers of the step's clusters: a function of (seed, step), the same on any rank."""
        numbers = torch.arange(self.num_clusters, device=self.steps.device)
        if self.num_compared == self.num_clusters:
            return numbers
        drawn = mix(mix(self.steps + self.seed) + numbers)
        return drawn.topk(self.num_compared).indices.sort().values


def read_centres(path: str, num_clusters: int, width: int) -> Float[Tensor, "c d"] | None:
    """Returns the centres of a file, rows of length one; None: there is no such file.

    Raises:
        ValueError: it holds other numbers of clusters or dimensions, or no centres.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        return None
    try:
        centres = load_file(path)["centres"].float()
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"'{path}' holds no centres of clusters ({error}): name the centres.safetensors that "
            "counterpoint cluster wrote"
        ) from error
    if list(centres.shape) != [num_clusters, width]:
        raise ValueError(
            f"'{path}' has {len(centres)} centres of {centres[0].numel()} numbers, and the "
            f"prototypes are {num_clusters} of width {width}: set num_clusters and width to the "
            "file's"
        )
    return F.normalize(centres, dim=1)
