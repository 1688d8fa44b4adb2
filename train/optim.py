"""Optimisers: parameters in, parameter groups and a torch optimiser out.

Weight decay as the field does it (open_clip, from Radford et al. 2021, section 2.5): on matrices
only; gains, biases, the logit scale and bias get none.
The learning rate is set by the phases at every step; here is only what it is multiplied by.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class AdamW:
    """AdamW with the two usual groups.

    Args:
        betas, eps: of Adam (CLIP's ViTs: 0.9, 0.98, 1e-6).
        weight_decay: on matrices.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
    ):
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay

    def build(self, *modules: nn.Module, fused: bool = True) -> torch.optim.Optimizer:
        """Returns the optimiser over all trainable parameters of `modules`.

        `fused` is torch's: one kernel for all parameters. With a gradient scaler it must be off,
        because a fused step unscales after the clipping.
        """
        named = [item for module in modules for item in module.named_parameters()]
        groups = decay_groups(named, self.weight_decay)
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=fused)


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Splits trainable parameters into those with decay (2-D and more) and those without."""
    trainable = [parameter for _, parameter in named if parameter.requires_grad]
    with_decay = [parameter for parameter in trainable if parameter.ndim >= 2]
    without = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
