"""Learned scalars that terms share or own: temperatures and biases.

Out: the value as a tensor [1]. Bounds are kept by a clamp after each optimiser step, not in the
forward pass, where it would stop the gradient at the bound.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Scalar(nn.Module, ABC):
    """A number that a term or several own.

    A class of its own, because the parser of run files looks for a name such as `logit_scale` among
    all subclasses of the declared type: of `nn.Module` there are thousands.
    """

    @abstractmethod
    def forward(self) -> Tensor:
        """Returns the number [1]."""

    def bounds(self) -> list[tuple[nn.Parameter, float, float]]:
        """Returns (parameter, lowest, highest) of stored values, none by default."""
        return []


class Positive(Scalar):
    """A number above zero, exp(t): a curvature, a factor of features.

    Args:
        init: at the start.
        lowest, highest: bounds.

    Raises:
        ValueError: the start lies outside the bounds.
    """

    def __init__(self, init: float, lowest: float, highest: float):
        super().__init__()
        if not 0 < lowest <= init <= highest:
            raise ValueError(
                f"{type(self).__name__} starts at {init:g}, outside its bounds {lowest:g} to "
                f"{highest:g}: change init, lowest or highest (all are multiplicative and above 0)"
            )
        self.log = nn.Parameter(torch.full((1,), math.log(init)))
        self._bounds = (math.log(lowest), math.log(highest))

    def forward(self) -> Tensor:
        return self.log.exp()

    def bounds(self) -> list[tuple[nn.Parameter, float, float]]:
        return [(self.log, *self._bounds)]


class Temperature(Positive):
    """A multiplicative logit scale, the inverse of a temperature.

    Args:
        init: the scale at the start (CLIP: 1/0.07, SigLIP: 10).
        lowest, highest: bounds of the scale.
    """

    def __init__(self, init: float = 1 / 0.07, lowest: float = 1.0, highest: float = 100.0):
        super().__init__(init, lowest, highest)


class Fixed(Scalar):
    """A number that is not learned.

    Args:
        value: the scale or bias.
    """

    value: Tensor

    def __init__(self, value: float):
        super().__init__()
        self.register_buffer("value", torch.full((1,), float(value)), persistent=False)

    def forward(self) -> Tensor:
        return self.value


class Bias(Scalar):
    """A learned number added to logits.

    Args:
        init: at the start (SigLIP: -10).
    """

    def __init__(self, init: float = -10.0):
        super().__init__()
        self.value = nn.Parameter(torch.full((1,), float(init)))

    def forward(self) -> Tensor:
        return self.value
