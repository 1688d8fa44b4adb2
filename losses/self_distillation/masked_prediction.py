"""Masked prediction: behind mask tokens the student makes of patches what its teacher sees there.

TIPS (Maninis et al. 2024), section 3.2, which has it of iBOT (Zhou et al. 2022); SigLIP 2
(Tschannen et al. 2025), section 2.3: half of the patches are hidden, both see the same view, and
the loss is that of local to global, with a head of its own.
"""

from typing import Any

import torch
from jaxtyping import Float
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

        Reads states [b, tokens, width], of which patches are the last, and `VIEW.hidden`
        [b, patches].
        """
        states, hidden, targets = (need(features, name, self) for name in self.needs)
        hidden = hidden.bool()
        samples, patches = hidden.nonzero().unbind(1)
        places = samples, patches + states.shape[1] - hidden.shape[1]
        seen = self.seen(targets[places])
        losses = self.matched(states[places], seen)
        # Each to its own place: the sums of an image have one order.
        flat = samples * hidden.shape[1] + patches
        dense = losses.new_zeros(hidden.numel()).index_copy(0, flat, losses).view(hidden.shape)
        if torch.is_grad_enabled():  # not where single samples are logged
            weights = self.row_weights(batch)
            self.follow(seen, None if weights is None else weights[samples])
        return dense.sum(1) / hidden.sum(1).clamp_min(1)
