"""Models on the line between two: weight interpolation.

Wortsman et al., "Robust fine-tuning of zero-shot models" (2022, WiSE-FT): (1 - alpha) theta_0 +
alpha theta_1 over all tensors, scale, biases and running statistics included. Between a model and
its fine-tuned self accuracy under shift is often higher than at both ends.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .sources import Loaded


def interpolate(start: Loaded, end: Loaded, alpha: float) -> Loaded:
    """Returns the model at `alpha`, with the tokenizer, transform and similarity of `start`.

    Args:
        start: the model at 0, such as the one that fine-tuning began with.
        end: the model at 1, of the same architecture.
        alpha: any number; from 0 to 1 it lies between.

    Raises:
        ValueError: the two have not the same tensors.
    """
    first, second = start.model.state_dict(), end.model.state_dict()
    check_same(first, second, start.name, end.name)
    model = copy.deepcopy(start.model)
    model.load_state_dict({name: mixed(first[name], second[name], alpha) for name in first})
    return replace(start, model=model)


def mixed(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Returns a tensor on the line; of whole numbers (counts) the one of the nearer end."""
    if not first.is_floating_point():
        return first if alpha < 0.5 else second
    if alpha in (0.0, 1.0):  # exactly, even where the other end is not finite
        return second if alpha else first
    return ((1 - alpha) * first.double() + alpha * second.double()).to(first.dtype)


def check_same(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], start: str, end: str
) -> None:
    """Checks that two models have the same tensors.

    Raises:
        ValueError: they do not.
    """
    alone = sorted(first.keys() ^ second.keys())
    cut = [name for name in first if name in second and first[name].shape != second[name].shape]
    if not alone and not cut:
        return
    name = (alone or cut)[0]
    what = f"'{name}' is in one of them only"
    if not alone:
        shapes = list(first[name].shape), list(second[name].shape)
        what = f"'{name}' is {shapes[0]} in one, {shapes[1]} in the other"
    raise ValueError(
        f"{start} and {end} cannot be interpolated: {what} (and {len(alone) + len(cut) - 1} more "
        "tensors differ); both have to be of one architecture"
    )


def check_alphas(alphas: Sequence[float]) -> None:
    """Checks the points of the line.

    Raises:
        ValueError: there is none, one is there twice or not from 0 to 1.
    """
    if not alphas or len(set(alphas)) < len(alphas) or not all(0 <= a <= 1 for a in alphas):
        raise ValueError(f"--alphas are {list(alphas)}; give different numbers from 0 to 1")
