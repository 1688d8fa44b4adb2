"""Self-distillation: rows of the student pick the prototypes that their teacher's rows pick.

The teacher is the student's moving average (`ema.VIEW`, which needs the run's `ema`), its head the
moving average of the student's head. For a row x of the student and x' of the teacher
l = -sum_k p'_k log p_k with p = softmax(z.w_k / t), p' = softmax((z'.w'_k - c_k) / t'); z and w are
the head's direction and prototypes, and c follows the mean of z'.w'_k over the global batch, which
keeps one prototype from taking all rows. Caron et al., "Emerging Properties in Self-Supervised
Vision Transformers" (2021, DINO), section 3.1; beside a contrastive loss in SILC (Naeem et al.,
2023).
"""

import copy
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..base import WEIGHT, SampleTerm
from ..components.features import Tensors
from ..distributed.collectives import total
from ..kernels.pairing import Pairing
from .head import PrototypeHead


class SelfDistillation(SampleTerm):
    """What both kinds share: heads, temperatures, the centre.

    Args:
        head: of the student; the teacher's begins as a copy of it and follows with the run's `ema`.
        temperature: t, of the student.
        teacher_temperature: t', of the teacher: the lower, the harder are its choices.
        centre_momentum: of c, from one step to the next.
        tile_bytes: memory of one block of logits; None: 32 MiB, on a GPU 256 MiB.

    Attributes:
        target: the teacher's head.
        centre: c [prototypes].

    Raises:
        ValueError: a temperature is not above 0, or the momentum outside 0 to 1.
    """

    centre: Tensor

    def __init__(
        self,
        head: PrototypeHead,
        temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        tile_bytes: int | None = None,
    ):
        super().__init__()
        if min(temperature, teacher_temperature) <= 0 or not 0 <= centre_momentum <= 1:
            raise ValueError(
                f"{type(self).__name__} has temperature={temperature:g}, teacher_temperature="
                f"{teacher_temperature:g}, centre_momentum={centre_momentum:g}: temperatures are "
                "above 0, the momentum lies between 0 and 1"
            )
        self.head = head
        self.target = copy.deepcopy(head).requires_grad_(False)
        self.temperatures = temperature, teacher_temperature
        self.centre_momentum = centre_momentum
        self.tile_bytes = tile_bytes
        self.register_buffer("centre", torch.zeros(len(head.weight)))

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.head, self.target)]

    @property
    def reads_weight(self) -> bool:
        return True

    def matched(
        self, student: Float[Tensor, "n width"], teacher: Float[Tensor, "n bottleneck"]
    ) -> Float[Tensor, "n"]:
        """Returns the cross-entropy of each row; logits are made again in the backward pass.

        Args:
            student: features.
            teacher: what `seen` returned for them.
        """
        own, theirs = self.head.prototypes(), self.target.prototypes()
        row_bytes = own.element_size() * len(own)
        rows = max(1, Pairing(tile_bytes=self.tile_bytes).bytes_on(own.device) // row_bytes)
        # The same call for every part: ranks may have any number of rows, or none.
        part = partial(checkpoint, _cross_entropy, use_reentrant=False, preserve_rng_state=False)
        centre = self.centre.clone()  # it will have moved when parts are made again
        made = [
            part(one, other, own, theirs, centre, self.temperatures)
            for one, other in zip(self.head(student).split(rows), teacher.split(rows), strict=True)
        ]
        return torch.cat(made)

    @torch.no_grad()
    def seen(self, teacher: Float[Tensor, "n width"]) -> Float[Tensor, "n bottleneck"]:
        """Returns the teacher's directions for its features."""
        return self.target(teacher)

    @torch.no_grad()
    def follow(self, teacher: Float[Tensor, "n bottleneck"], weights: Tensor | None) -> None:
        """Moves the centre towards the mean logits of the teacher's rows of all ranks.

        Args:
            teacher: directions.
            weights: of the rows [n]; None: all alike.
        """
        weight = teacher.new_ones(len(teacher)) if weights is None else weights.to(teacher)
        # The mean of products with prototypes is the product with the mean.
        sums = total(torch.cat([weight @ teacher, weight.sum().view(1)]))
        mean = sums[:-1] / sums[-1].clamp_min(torch.finfo(sums.dtype).tiny)
        logits = (self.target.prototypes() @ mean).to(self.centre.dtype)
        self.centre.lerp_(logits, 1 - self.centre_momentum)

    def row_weights(self, batch: Tensors) -> Tensor | None:
        """Returns the weights of the samples, if they have any."""
        return batch.get(WEIGHT)


def _cross_entropy(
    student: Tensor,
    teacher: Tensor,
    own: Tensor,
    theirs: Tensor,
    centre: Tensor,
    temperatures: tuple[float, float],
) -> Tensor:
    with torch.autocast(student.device.type, enabled=False):
        with torch.no_grad():
            wanted = ((teacher @ theirs.T - centre) / temperatures[1]).softmax(1)
        return -(wanted * (student @ own.T / temperatures[0]).log_softmax(1)).sum(1)
