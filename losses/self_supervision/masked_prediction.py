"""Masked prediction: behind mask tokens the student makes of patches what its teacher sees there.

TIPS (Maninis et al. 2024), section 3.2, which has it of iBOT (Zhou et al. 2022); SigLIP 2
(Tschannen et al. 2025), section 2.3: half of the patches are hidden, both see the same view, and
the loss is that of local to global, with a head of its own.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..components.features import Tensors, need
from .base import SelfDistillation
from .head import PrototypeHead
from .local_to_global import check_sides


class MaskedPrediction(SelfDistillation):
    """Mean over an image's hidden patches of their cross-entropy with the teacher's patches.

    A phase's `image_reducer` hides them, in this view alone: `OnViews` around `MaskTokens`. A
    sample without hidden patches has a loss of 0.

    Args:
        head: of the student's patches; takes states of the image tower's width.
        view: that the student sees in part and the average in full, such as `image.whole`.
        matching: of `SelfDistillation`.
    """

    name = "masked_prediction"

    def __init__(self, head: PrototypeHead, view: str = "image.whole", **matching: Any):
        super().__init__(head, **matching)
        check_sides(self, [view], f"ema.{view}")
        self.view = view
        self.needs = (f"{view}.tokens", f"{view}.hidden", f"ema.{view}.tokens")

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean over hidden patches of each sample.

        Reads states [b, tokens, width] and `VIEW.hidden` [b, k].
        """
        states, hidden, targets = (need(features, name, self) for name in self.needs)
        seen = self.seen(at_places(targets, hidden))
        losses = self.matched(at_places(states, hidden), seen).view(hidden.shape)
        num_hidden = hidden.shape[1]
        if torch.is_grad_enabled():  # not where single samples are logged
            weights = self.row_weights(batch)
            self.follow(seen, None if weights is None else weights.repeat_interleave(num_hidden))
        return losses.sum(1) / max(1, num_hidden)


def at_places(
    states: Float[Tensor, "b tokens width"], places: Int64[Tensor, "b k"]
) -> Float[Tensor, "bk width"]:
    """Returns the states at places that are counted from the last one."""
    index = (places + states.shape[1])[:, :, None].expand(-1, -1, states.shape[2])
    return states.gather(1, index).flatten(0, 1)
