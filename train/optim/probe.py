"""Traits of an optimizer that strategies depend on, measured on small tensors.

In: a function that makes the optimizer. Out: whether it gives the same updates on pieces of
parameters, as strategies cut them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Not square, and larger than the sizes from which moments are factored (16, 128).
ROWS, COLUMNS = 160, 192
STEPS = 4
RATE = 0.01

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Traits:
    """What strategies must know of an optimizer.

    Attributes:
        whole_tensors: a parameter's update depends on more than each of its elements' own past.
        own_shapes: keeps states that are neither single numbers nor shaped like their parameter.
    """

    whole_tensors: bool
    own_shapes: bool


def probe(make: Make) -> Traits:
    """Steps a matrix, and its two halves as flat pieces with an optimizer each.

    The halves differ in size and in how their gradients grow, and the first gradient is orthogonal
    to the matrix row by row, so that norms, means, clipping and projections all change it.
    """
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    weights[ROWS // 2 :] *= 3
    gradients = [
        torch.randn(ROWS, COLUMNS, generator=generator, dtype=torch.float64) for _ in range(STEPS)
    ]
    along = (gradients[0] * weights).sum(1, keepdim=True) / weights.square().sum(1, keepdim=True)
    gradients[0] -= along * weights
    for step, gradient in enumerate(gradients):
        gradient[: ROWS // 2] *= 10.0**step
    whole, states = train_on(make, weights, gradients)
    flat = [gradient.flatten().chunk(2) for gradient in gradients]
    halves = [
        train_on(make, piece, [pieces[number] for pieces in flat])[0]
        for number, piece in enumerate(weights.flatten().chunk(2))
    ]
    # Rounding may differ with the shape; a real dependence is of the size of a step.
    moved = (whole.flatten() - torch.cat(halves)).abs().max() > 1e-4 * RATE
    shaped = any(t.numel() > 1 and t.shape != whole.shape for t in tensors(states))
    return Traits(bool(moved), shaped)


def train_on(make: Make, weights: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Any]:
    """Returns a parameter after training, and the optimizer's states of it."""
    parameter = nn.Parameter(weights.clone())
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        for group in optimizer.param_groups:
            group["lr"] = RATE
        optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def tensors(value: Any) -> list[Tensor]:
    """Returns all tensors in a state, nested in any way."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []
