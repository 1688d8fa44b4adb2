"""Local to global: what the student makes of a crop is what its teacher makes of the whole image.

SILC (Naeem et al. 2023), section 3.2; SigLIP 2 (Tschannen et al. 2025), section 2.3: eight crops of
the student, one view of the teacher.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..components.features import Tensors, need
from .base import SelfDistillation
from .head import PrototypeHead


class LocalToGlobal(SelfDistillation):
    """Mean over a sample's crops of their cross-entropy with the teacher's view.

    Args:
        head: of the student; takes features of the width of those named.
        local: features of the student's crops, such as [image.local_1.pooled].
        whole: feature of the average, such as `ema.image.whole.pooled`.
        matching: of `SelfDistillation`.

    Raises:
        ValueError: no crops, or the two sides are not an online feature and an averaged one.
    """

    name = "local_to_global"

    def __init__(
        self,
        head: PrototypeHead,
        local: Sequence[str] = ("image.local_1.pooled",),
        whole: str = "ema.image.pooled",
        **matching: Any,
    ):
        super().__init__(head, **matching)
        check_sides(self, local, whole)
        self.local, self.whole = tuple(local), whole
        self.needs = (*self.local, whole)

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean over crops of each sample; reads features [b, width]."""
        whole = self.seen(need(features, self.whole, self))
        losses = [self.matched(need(features, name, self), whole) for name in self.local]
        if torch.is_grad_enabled():  # not where single samples are logged
            self.follow(whole, self.row_weights(batch))
        return torch.stack(losses).mean(0)


def check_sides(term: SelfDistillation, online: Sequence[str], averaged: str) -> None:
    """Refuses features of the wrong side."""
    name = type(term).__name__
    if isinstance(online, str) or not online or any(n.startswith("ema.") for n in online):
        raise ValueError(
            f"{name} reads {online!r} of the student: name a list of online features, such as "
            "[image.local_1.pooled]"
        )
    if not averaged.startswith("ema."):
        raise ValueError(
            f"{name} takes '{averaged}' for its teacher's: name a feature of the run's average, "
            "such as ema.image.pooled"
        )
