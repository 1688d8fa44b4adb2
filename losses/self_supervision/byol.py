"""BYOL: each view predicts what the averaged towers make of another view of the same image.

In: features of online views and of averaged ones (`ema.VIEW`, which needs the run's `ema`). Out:
the squared distance of the two as unit vectors. No negatives: only heads exchange anything.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import SampleTerm
from ..components.features import Tensors, full_precision, need


class BYOL(SampleTerm):
    """Mean over pairs of views of 2 - 2 cos(predictor(projector(online)), sg(target(averaged))).

    Grill et al. (2020), "Bootstrap Your Own Latent", section 3.1; in A-CLIP (Yang et al. 2023)
    beside the contrastive loss. `target` is the projector's moving average: it follows with the
    `ema` of the run, after each optimiser step, and is in the checkpoint with the term.

    Args:
        projector: head on both sides; takes rows of the features' width.
        predictor: head on the online side alone.
        pairs: (online feature, averaged feature), such as `[image.strong_1.raw,
            ema.image.strong_2.raw]` and the other way round.
    """

    name = "byol"

    def __init__(
        self, projector: nn.Module, predictor: nn.Module, pairs: Sequence[tuple[str, str]]
    ):
        super().__init__()
        for online, averaged in pairs:
            if online.startswith("ema.") or not averaged.startswith("ema."):
                raise ValueError(
                    f"BYOL's pair [{online}, {averaged}] must be an online feature and an averaged "
                    "one, such as [image.strong_1.raw, ema.image.strong_2.raw]"
                )
        if not pairs:
            raise ValueError("BYOL needs pairs of views, such as [[image.raw, ema.image.raw]]")
        self.projector = projector
        self.predictor = predictor
        self.target = copy.deepcopy(projector).requires_grad_(False)
        self.pairs = [tuple(pair) for pair in pairs]
        self.needs = tuple(dict.fromkeys(name for pair in self.pairs for name in pair))

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        return [(self.projector, self.target)]

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Mean over the pairs of each sample; reads the features named in `pairs`, [b, d]."""
        guesses, targets = ({}, {})
        for online, averaged in self.pairs:
            if online not in guesses:
                (feature,) = full_precision(need(features, online, self))
                guesses[online] = self.predictor(self.projector(feature))
            if averaged not in targets:
                with torch.no_grad():
                    (feature,) = full_precision(need(features, averaged, self))
                    targets[averaged] = self.target(feature)
        losses = []
        for online, averaged in self.pairs:
            guess, target = full_precision(guesses[online], targets[averaged])
            losses.append(2 - 2 * F.cosine_similarity(guess, target, dim=1))
        return torch.stack(losses).mean(0)
