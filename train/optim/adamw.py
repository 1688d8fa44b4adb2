"""Settings of optimizers, and the torch optimizer over parameter groups that they make.

In: the model and the objective. Out: a torch optimizer whose groups have a factor `rate`; at every
step the phases set the learning rate that it multiplies.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from ..strategies.row_shards import cut_states
from .param_groups import USUAL, Groups, named_parameters, parameter_groups


class AdamW:
    """AdamW with the usual groups; the base class of other optimizers, which override `make`.

    Args:
        betas, eps: of Adam (CLIP's ViTs: 0.9, 0.98, 1e-6).
        weight_decay: on matrices.
        scalar_rate: learning rate of the logit scale and bias as a multiple of the others'. They
            are single numbers that must travel far, which short runs give them no time for.
        groups: rates and decays by tower and layer; parameters without decay; frozen ones.

    Attributes:
        whole_tensors: a parameter's update depends on more than each of its elements' own past, so
            that strategies which cut parameters into flat pieces (ZeRO) would change it.
        own_shapes: keeps states that are neither single numbers nor shaped like their parameter.
        own_backward: its callbacks take a backward pass besides the loss's.
    """

    whole_tensors = False
    own_shapes = False
    own_backward = False

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.2,
        scalar_rate: float = 1.0,
        groups: Groups = USUAL,
    ):
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.scalar_rate = scalar_rate
        self.groups = groups

    @property
    def name(self) -> str:
        """Name in messages."""
        return type(self).__name__

    def build(
        self, model: nn.Module, objective: nn.Module | None = None, fused: bool = True
    ) -> torch.optim.Optimizer:
        """Returns the optimizer over all trainable parameters.

        `fused` is torch's: one kernel for all parameters. With a gradient scaler it must be off,
        because a fused step unscales after gradient clipping.
        """
        groups = parameter_groups(
            model, objective, self.weight_decay, self.scalar_rate, self.groups
        )
        optimizer = self.make(groups, named_parameters(model, objective), fused)
        optimizer.register_load_state_dict_pre_hook(keep_settings)
        optimizer.register_load_state_dict_pre_hook(cut_states)
        return optimizer

    def make(
        self, groups: list[dict[str, Any]], named: dict[str, nn.Parameter], fused: bool
    ) -> torch.optim.Optimizer:
        """Returns the torch optimizer over finished groups."""
        return torch.optim.AdamW(groups, lr=0.0, betas=self.betas, eps=self.eps, fused=fused)

    def callbacks(self) -> list[pl.Callback]:
        """Returns callbacks that the optimizer needs; they are called before all others."""
        return []


def keep_settings(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replaces a checkpoint's settings by the optimizer's; a hook of its `load_state_dict`.

    `fused` decides on which device torch puts step counts while it loads: later is too late.
    """
    groups = [dict(group) for group in state["param_groups"]]
    for group, present in zip(groups, optimizer.param_groups, strict=False):
        group.update({key: present[key] for key in optimizer.defaults if key != "lr"})
    return {**state, "param_groups": groups}
