"""The student's moving average: exponential (EMA), or weighted by a Beta distribution (BMA).

In: the model and the objective after each step. Out: features under `ema.`, and weights for export.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from ..losses.objective import Objective
from ..models.teachers.frozen import FrozenTowers
from ..models.two_tower import TwoTower
from .strategies.sharded_tensors import LocalTensors, Tensors


@dataclass
class EmaConfig:
    """Decay of the average: average <- decay * average + (1 - decay) * student.

    Attributes:
        decay: at the first step (BYOL, A-CLIP: 0.996).
        final_decay: at the end of the run, reached along half a cosine (BYOL, A-CLIP: 1); None:
            `decay` throughout.
        beta: in the place of both: the average is that of all states of the run so far, with the
            density of Beta(beta, beta) as their weights, from the start at 0 to the end at 1
            (CLIPood: 0.5 and 0.1; 1: all alike).
    """

    decay: float | None = None
    final_decay: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        if (self.decay is None) == (self.beta is None):
            raise ValueError(
                f"ema.decay is {self.decay} and ema.beta {self.beta}: give one of them, such as "
                "decay: 0.999, or beta: 0.5 for weights by a Beta distribution"
            )
        if self.beta is not None and (not self.beta > 0 or self.final_decay is not None):
            raise ValueError(
                f"ema.beta is {self.beta}: it must be above 0, and there is no final_decay with it"
            )
        for name in ("decay", "final_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"ema.{name} is {value}: it must lie between 0 and 1")

    def at(self, step: int, total_steps: int) -> float:
        """Returns the decay after the 0-based step `step` (Grill et al. 2020, section 3.2)."""
        if self.beta is not None:
            sums = summed_weights(self.beta, total_steps)
            return float(sums[step] / sums[step + 1])
        assert self.decay is not None
        final = self.decay if self.final_decay is None else self.final_decay
        return final - (final - self.decay) * (math.cos(math.pi * step / total_steps) + 1) / 2


@lru_cache(maxsize=2)
def summed_weights(beta: float, total_steps: int) -> np.ndarray:
    """Returns the sums of the first 1, 2, ... weights of a run's states, [total_steps + 1].

    State k of T + 1, the first before any step, has the density of Beta(beta, beta) at
    (k + 1/2) / (T + 1) as its weight, up to a factor, as in the published code of Shu et al.,
    "CLIPood: Generalizing CLIP to Out-of-Distributions" (2023). A running mean with these weights
    is an average whose decay is the quotient of two sums.
    """
    place = (np.arange(total_steps + 1) + 0.5) / (total_steps + 1)
    return np.cumsum((place * (1 - place)) ** (beta - 1))


class Ema(FrozenTowers):
    """The moving average of the student, which starts as a copy of it.

    It is updated after the optimizer's step and the clamping of scalars: a checkpoint of that step
    holds an average that includes its weights, and the next step's features come from an average
    that includes the present student, as in implementations that update before use.

    Terms of the objective may have averages of their own (a projector's target in BYOL), which
    follow with the same decay: `Term.averages`.
    """

    def __init__(self, student: TwoTower, config: EmaConfig):
        super().__init__(copy.deepcopy(student))
        self.config = config

    @torch.no_grad()
    def update(
        self,
        student: nn.Module,
        objective: Objective,
        step: int,
        total_steps: int,
        tensors: Tensors | None = None,
        skip: Tensor | None = None,
    ) -> None:
        """Updates averages from their online modules, after `step` steps; buffers are copied.

        Where `skip` [] is true the step was left out, and averages stay as they are.
        """
        tensors = tensors or LocalTensors()
        modules = self.followed(student, objective)
        for average, online in modules:
            tensors.release(average)
            for mine, theirs in zip(average.buffers(), online.buffers(), strict=True):
                mine.copy_(theirs)
        pairs = list(parameters_of(modules))
        # On the device: nothing waits for what the guard has decided.
        counts = torch.ones((), dtype=torch.float64) if skip is None else (~skip).double()
        tensors.follow(pairs, counts * (1 - self.config.at(step, total_steps)))

    def followed(
        self, student: nn.Module, objective: Objective
    ) -> list[tuple[nn.Module, nn.Module]]:
        """Returns pairs of an average (the towers', those of heads) and the module it follows."""
        heads = [(average, online) for online, average in objective.averages()]
        return [(self.model, student), *heads]


def parameters_of(
    modules: Iterable[tuple[nn.Module, nn.Module]],
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Yields pairs of parameters of equal modules: the average's, the online one's."""
    for average, online in modules:
        yield from zip(average.parameters(), online.parameters(), strict=True)
