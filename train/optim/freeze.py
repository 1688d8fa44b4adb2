"""Frozen parameters, by patterns of their names (LiT, Zhai et al. 2022)."""

from collections.abc import Sequence

from torch import nn

from ..torch_internals import stay_in_eval_mode
from .param_groups import check_patterns, matches


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freezes the parameters that match, before a strategy wraps the model.

    Modules without any trainable parameter stay in evaluation mode (no dropout, no new batch
    statistics), whatever `train()` is called on above them.
    """
    check_patterns("frozen", patterns, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        if matches(name, patterns):
            parameter.requires_grad_(False)
    _fix_mode(model, patterns, "")


def _fix_mode(module: nn.Module, patterns: Sequence[str], prefix: str) -> None:
    names = [prefix + name for name, _ in module.named_parameters()]
    if names and all(matches(name, patterns) for name in names):
        stay_in_eval_mode(module)
        return
    for name, child in module.named_children():
        _fix_mode(child, patterns, f"{prefix}{name}.")
