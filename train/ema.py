"""The student's moving average: towers of its own that follow the trained ones.

In: the model and the objective after each step. Out: features under `ema.`, and weights for export.
"""

import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from ..losses.objective import Objective
from ..models.teachers.frozen import FrozenTowers
from ..models.two_tower import TwoTower
from .strategies.sharded_tensors import LocalTensors, Tensors


@dataclass
class EmaConfig:
    """How slowly the average follows: average <- decay * average + (1 - decay) * student.

    Attributes:
        decay: at the first step (BYOL, A-CLIP: 0.996).
        final_decay: what it grows to along a half cosine by the end of the run (BYOL, A-CLIP: 1);
            none: it stays.
    """

    decay: float
    final_decay: float | None = None

    def __post_init__(self) -> None:
        for name in ("decay", "final_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"ema.{name} is {value}: it must lie between 0 and 1")

    def at(self, step: int, total_steps: int) -> float:
        """Decay after the 0-based step `step` (Grill et al. 2020, BYOL, section 3.2)."""
        final = self.decay if self.final_decay is None else self.final_decay
        return final - (final - self.decay) * (math.cos(math.pi * step / total_steps) + 1) / 2


class Ema(FrozenTowers):
    """The exponential moving average of the student, which starts as a copy of it.

    It is updated after the optimiser's step and the clamping of scalars: a checkpoint written then
    holds an average that has seen the weights beside it, and the next step's features come from an
    average that includes the student as it is, as where others update before use.

    Terms of the objective may have averages of their own (a projector's target in BYOL), which
    follow with the same decay: `Term.averages`.

    Args:
        student: the model that is trained.
        config: how slowly it follows.
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
    ) -> None:
        """Moves all averages towards their online modules; buffers are copied.

        Args:
            student: the model that is trained.
            objective: its terms may have averages.
            step: steps done.
            total_steps: of the run.
            tensors: the strategy's; None: one process.

        Raises:
            ValueError: the weights are kept in a way that an average cannot follow.
        """
        tensors = tensors or LocalTensors()
        modules = self.followed(student, objective)
        for average, online in modules:
            tensors.release(average)
            for mine, theirs in zip(average.buffers(), online.buffers(), strict=True):
                mine.copy_(theirs)
        pairs = list(parameters_of(modules))
        tensors.follow(pairs, self.config.at(step, total_steps))

    def followed(
        self, student: nn.Module, objective: Objective
    ) -> list[tuple[nn.Module, nn.Module]]:
        """Each average, its own and those of heads, beside the module that it follows."""
        heads = [(average, online) for online, average in objective.averages()]
        return [(self.model, student), *heads]


def parameters_of(
    modules: Iterable[tuple[nn.Module, nn.Module]],
) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """The parameters of modules of the same kind, side by side."""
    for average, online in modules:
        yield from zip(average.parameters(), online.parameters(), strict=True)
