"""Frozen parts of a model (LiT, Zhai et al. 2022): patterns in, a part that stays as it is out."""

from collections.abc import Sequence

from torch import nn

from ..torch_internals import stay_in_eval_mode
from .param_groups import check_patterns, matches


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Takes the parameters that match out of training, before a strategy wraps the model.

    Modules that have nothing left to learn go into evaluation mode for good (no dropout, no new
    batch statistics), whatever `train()` is called on above them.

    Raises:
        ValueError: a pattern matches no parameter.
    """
    check_patterns("frozen", patterns, [name for name, _ in model.named_parameters()])
    for name, parameter in model.named_parameters():
        if matches(name, patterns):
            parameter.requires_grad_(False)
    _settle(model, patterns, "")


def _settle(module: nn.Module, patterns: Sequence[str], prefix: str) -> None:
    names = [prefix + name for name, _ in module.named_parameters()]
    if names and all(matches(name, patterns) for name in names):
        stay_in_eval_mode(module)
        return
    for name, child in module.named_children():
        _settle(child, patterns, f"{prefix}{name}.")
