"""Tip-Adapter, without training: the shots are a cache of keys and values.

Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification" (2022),
section 3.1: logits = 100 * zero-shot + alpha * exp(-beta (1 - x F^T)) L, for embeddings F of the
shots and their one-hot classes L.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ranks import full_precision
from .few_shot import FewShot, Shots

# The ranges in which the published code searches, in 20 steps each.
ALPHAS = torch.linspace(0.1, 3.0, 20).tolist()
BETAS = torch.linspace(0.1, 7.0, 20).tolist()


class TipAdapter(FewShot):
    """Zero-shot logits plus what similar shots vote for.

    alpha is chosen from 0.1 to 3, beta from 0.1 to 7. Measures and arguments: see `FewShot`.
    """

    def settings(self) -> list[tuple[float, ...]]:
        return [(alpha, beta) for alpha in ALPHAS for beta in BETAS]

    def fit(self, shots: Shots, num_classes: int) -> tuple[Tensor, Tensor]:
        """Returns keys [shots, d] and values [shots, classes]."""
        return shots.features, F.one_hot(shots.targets, num_classes).to(shots.features)

    def bias(
        self, fitted: tuple[Tensor, Tensor], queries: Shots, setting: tuple[float, ...]
    ) -> Tensor:
        keys, values = fitted
        alpha, beta = setting
        with full_precision(keys.device):
            affinities = queries.features @ keys.T
            return alpha * ((affinities - 1.0) * beta).exp() @ values
