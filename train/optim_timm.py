"""Further optimisers, as timm implements them, over the same groups as AdamW.

`optim: {class_path: counterpoint.train.optim_timm.Lion, init_args: {...}}` chooses one.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.optim.adafactor_bv import AdafactorBigVision
from timm.optim.adamw import AdamWLegacy
from timm.optim.lamb import Lamb as TimmLamb
from timm.optim.lion import Lion as TimmLion
from timm.optim.muon import Muon as TimmMuon
from torch import nn

from .groups import USUAL, Groups, kind_of, matches
from .optim import AdamW


class StableAdamW(AdamW):
    """AdamW whose step shrinks when gradients outgrow their second moment (Wortsman et al. 2023).

    A tensor's update is divided by max(1, RMS of gradient / (sqrt(v) + eps)): spikes that begin in
    the patch embedding do not become steps. The decay is not divided (the paper's is).

    Args:
        betas, eps, weight_decay, scalar_rate, groups: as of AdamW.
    """

    whole_tensors = True

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """timm's AdamW with its clipped update."""
        return AdamWLegacy(groups, lr=0.0, betas=self.betas, eps=self.eps, clipping_threshold=1.0)


class Lamb(AdamW):
    """Adam's update scaled by |weight| / |update| for every tensor (You et al. 2020).

    timm's own clipping at norm 1 is off: `clip` names the clipper.

    Args:
        betas, eps, weight_decay, scalar_rate, groups: as of AdamW.
    """

    whole_tensors = True

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """timm's LAMB; what has no decay gets no trust ratio either."""
        return TimmLamb(groups, lr=0.0, betas=self.betas, eps=self.eps, max_grad_norm=None)


class Lion(AdamW):
    """The sign of an interpolated momentum (Chen et al. 2023); half of Adam's state.

    Learning rate 3 to 10 times smaller than AdamW's, decay as many times larger.

    Args:
        betas: of the update, of the momentum.
        weight_decay, scalar_rate, groups: as of AdamW.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 1.0,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
    ):
        super().__init__(betas, 0.0, weight_decay, scalar_rate, groups)

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """timm's Lion."""
        return TimmLion(groups, lr=0.0, betas=self.betas)


class Adafactor(AdamW):
    """Adafactor as in Scaling Vision Transformers (Zhai et al. 2022): factored second moments.

    Args:
        beta1: of the momentum.
        beta2_cap: largest decay of the second moment, which grows as 1 - step^-0.8.
        momentum_dtype: how the momentum is kept.
        weight_decay, scalar_rate, groups: as of AdamW.
    """

    whole_tensors = True
    own_shapes = True

    def __init__(
        self,
        beta1: float = 0.9,
        beta2_cap: float = 0.95,
        momentum_dtype: Literal["bfloat16", "float32"] = "bfloat16",
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
    ):
        super().__init__((beta1, beta2_cap), 0.0, weight_decay, scalar_rate, groups)
        self.momentum_dtype = momentum_dtype

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """timm's, after big_vision's."""
        return AdafactorBigVision(
            groups,
            lr=0.0,
            momentum=self.betas[0],
            beta2_cap=self.betas[1],
            momentum_dtype=self.momentum_dtype,
        )


class Muon(AdamW):
    """Orthogonalised momentum for the blocks' matrices, AdamW for all else (Jordan et al. 2024).

    The step of a matrix is scaled to the RMS of an AdamW step, so one learning rate serves both.

    Args:
        momentum: of the matrices.
        betas: of AdamW.
        adamw: patterns of matrices that AdamW takes: embeddings and projections. Those of the
            objective's heads need not be named.
        weight_decay, scalar_rate, groups: as of AdamW.
    """

    whole_tensors = True

    def __init__(
        self,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        adamw: Sequence[str] = ("*embed*", "*_token", "*_projection.weight"),
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
    ):
        super().__init__(betas, 1e-7, weight_decay, scalar_rate, groups)
        self.momentum, self.adamw = momentum, tuple(adamw)

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """timm's Muon; every group is split into what AdamW takes and what it does not."""
        plain = {
            id(p)
            for name, p in named.items()
            if kind_of(name, p) != "matrices" or matches(name, self.adamw)
        }
        halves = [
            group
            | {"params": [p for p in group["params"] if (id(p) in plain) == fallback]}
            | {"use_fallback": fallback}
            for group in groups
            for fallback in (False, True)
        ]
        kept = [group for group in halves if group["params"]]
        return TimmMuon(kept, lr=0.0, momentum=self.momentum, nesterov=True, betas=self.betas)
