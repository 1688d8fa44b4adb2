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
    """AdamW with the usual groups.

    Args:
        betas, eps: of Adam (CLIP's ViTs: 0.9, 0.98, 1e-6).
        weight_decay: on matrices.
        scalar_rate: learning rate of the logit scale and bias as a multiple of the others'. They
            are single numbers that must travel far, which short runs give them no time for.
    """

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
    ):
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.scalar_rate = scalar_rate

    def build(
        self, model: nn.Module, *heads: nn.Module, fused: bool = True
    ) -> torch.optim.Optimizer:
        """Returns the optimiser over all trainable parameters; those of `heads` do not decay.

        `fused` is torch's: one kernel for all parameters. With a gradient scaler it must be off,
        because a fused step unscales after the clipping.
        """
        others = [item for module in heads for item in module.named_parameters()]
        groups = parameter_groups(
            model.named_parameters(), self.weight_decay, self.scalar_rate, others
        )
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=fused)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    scalar_rate: float = 1.0,
    heads: Iterable[tuple[str, nn.Parameter]] = (),
) -> list[dict[str, Any]]:
    """Splits trainable parameters: matrices (with decay), vectors, single numbers, and heads.

    Heads are the parameters of terms, `heads`; their single numbers are with the others.
    Each group's `rate` is what the phase's learning rate is multiplied by.
    """
    trainable = [parameter for _, parameter in named if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [p for p in trainable if p.ndim < 2 and p.numel() > 1]
    of_terms = [parameter for _, parameter in heads if parameter.requires_grad]
    scalars = [p for p in (*trainable, *of_terms) if p.ndim < 2 and p.numel() == 1]
    groups = [
        {"params": matrices, "weight_decay": weight_decay, "rate": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate": 1.0},
        {"params": scalars, "weight_decay": 0.0, "rate": scalar_rate},
        {
            "params": [p for p in of_terms if p.ndim >= 2 or p.numel() > 1],
            "weight_decay": 0.0,
            "rate": 1.0,
        },
    ]
    return [group for group in groups if group["params"]]
