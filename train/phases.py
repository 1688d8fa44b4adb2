"""Phases: what changes during a run, and the only source of its length.

In: the named, ordered phases of a run file. Out: each step's phase, global batch size, learning
rate and reducers of the towers' inputs (patches, resolution, tokens, words). All are functions of
the step, so that nothing needs to be saved.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from ..data.order.steps import Steps
from ..data.pairs import Pairs
from ..data.text.syntax import WordReducer
from ..models.reducers.base import ImageReducer, Reduction, TextReducer
from ..models.two_tower import TwoTower
from . import lr_schedules as schedules
from .checks import at_least


@dataclass
class Phase:
    """A stretch of training with one batch size and one learning-rate curve.

    Attributes:
        samples: length in image-text pairs (rounded up to whole steps).
        batch_size: pairs in the global batch, over all processes.
        learning_rate: of the peak, or of a batch of `rate_batch` pairs.
        warmup_samples: pairs over which the rate rises linearly from 0 to the peak.
        schedule: the curve after the warm-up.
        final_fraction: end of the cosine or of the cool-down, as a fraction of its start.
        cooldown_samples: pairs at the end over which `constant` and `rsqrt` fall linearly.
        timescale_samples: pairs after which `rsqrt` has fallen to 1 / sqrt(2) of the peak.
        image_reducer: leaves out patches or makes images smaller; None: neither.
        text_reducer: leaves out tokens; None: none.
        word_reducer: leaves out words, before they become tokens; None: none.
        rate_batch: batch size that `learning_rate` is for; the peak is the rate times
            batch_size / rate_batch, or times its root. None: `learning_rate` is the peak.
        rate_scaling: `linear` (Goyal et al. 2017) or `sqrt` (for Adam; Malladi et al. 2022).
    """

    samples: int
    batch_size: int
    learning_rate: float
    warmup_samples: int = 0
    schedule: Literal["cosine", "constant", "rsqrt"] = "cosine"
    final_fraction: float = 0.0
    cooldown_samples: int = 0
    timescale_samples: int = 0
    image_reducer: ImageReducer | None = None
    text_reducer: TextReducer | None = None
    word_reducer: WordReducer | None = None
    rate_batch: int | None = None
    rate_scaling: Literal["linear", "sqrt"] = "linear"

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the phase."""
        return math.ceil(self.samples / self.batch_size)

    @property
    def peak(self) -> float:
        """Highest learning rate, scaled to this batch size."""
        factor = self.batch_size / (self.rate_batch or self.batch_size)
        return self.learning_rate * (factor if self.rate_scaling == "linear" else factor**0.5)

    def rate(self, step: int) -> float:
        """Returns the learning rate of the phase's step `step` (0-based)."""
        warmup = math.ceil(self.warmup_samples / self.batch_size)
        cooldown = math.ceil(self.cooldown_samples / self.batch_size)
        length, final = self.num_steps, self.final_fraction
        if self.schedule == "cosine":
            return schedules.cosine(step, self.peak, length, warmup, final)
        if self.schedule == "constant":
            return schedules.constant(step, self.peak, length, warmup, cooldown, final)
        timescale = math.ceil(self.timescale_samples / self.batch_size)
        return schedules.rsqrt(step, self.peak, length, warmup, cooldown, final, timescale)


class Phases:
    """The phases of a run, or of one of its stages, in order, looked up by global step.

    Args:
        phases: by name.
        earlier: (steps, global batch size) of the phases of earlier stages; steps count through.

    Attributes:
        named: the phases.
        first_step: of the stage.

    Raises:
        ValueError: no phases, or a value out of range.
    """

    def __init__(self, phases: Mapping[str, Phase], earlier: Sequence[tuple[int, int]] = ()):
        if not phases:
            raise ValueError("phases is empty: give at least one, such as phases: {train: {...}}")
        for name, phase in phases.items():
            _check(name, phase)
        self.named = dict(phases)
        self.earlier = list(earlier)
        self.first_step = sum(num_steps for num_steps, _ in self.earlier)

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(steps, global batch size) of each phase from the run's start, for the data's steps."""
        own = [(phase.num_steps, phase.batch_size) for phase in self.named.values()]
        return [*self.earlier, *own]

    @property
    def total_steps(self) -> int:
        """Optimizer steps until the end of the last of these phases."""
        return sum(num_steps for num_steps, _ in self.lengths)

    @property
    def own_steps(self) -> int:
        """Optimizer steps of these phases, without earlier stages."""
        return self.total_steps - self.first_step

    def progress(self, step: int) -> float:
        """Returns which part of these phases is done before a global step, in [0, 1]."""
        return (step - self.first_step) / self.own_steps

    def at(self, step: int) -> tuple[str, Phase, int]:
        """Returns (name, phase, step within the phase); past the end, the last step's."""
        first = self.first_step
        for name, phase in self.named.items():
            if step < first + phase.num_steps:
                return name, phase, step - first
            first += phase.num_steps
        name, phase = list(self.named.items())[-1]
        return name, phase, phase.num_steps - 1

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of global step `step`."""
        _, phase, local = self.at(step)
        return phase.rate(local)

    def reduction(self, step: int, seed: int) -> Reduction:
        """Returns the token reducers of global step `step`, with the seed of their draws."""
        _, phase, _ = self.at(step)
        return Reduction(seed, step, phase.image_reducer, phase.text_reducer)

    @property
    def needs(self) -> frozenset[str]:
        """Features by which the image reducers of all phases keep patches."""
        reducers = (phase.image_reducer for phase in self.named.values())
        return frozenset(name for reducer in reducers if reducer for name in reducer.needs)

    def samples_before(self, step: int) -> int:
        """Returns the number of pairs in the steps before `step`."""
        total = 0
        for num_steps, batch_size in self.lengths:
            taken = min(step, num_steps)
            total += taken * batch_size
            step -= taken
        return total


def prepare_reducers(phases: Phases, model: TwoTower) -> None:
    """Adds what all phases' reducers need to the image tower, and tries each on one image.

    Parameters of a later phase exist from the start: no phase adds any.
    """
    side = model.image_size
    for name, phase in phases.named.items():
        if (reducer := phase.image_reducer) is None:
            continue
        try:
            reducer.prepare(model.image)
            image = reducer.pixels(torch.zeros(1, 3, side, side, dtype=torch.uint8))
            grid = model.image.grid(image)
            reduction = Reduction(0, 0, reducer, scores={"image": torch.zeros(1, *grid)})
            reducer.keep(grid, torch.zeros(1, dtype=torch.int64), "image", reduction)
        except ValueError as error:
            raise ValueError(f"phases.{name}.image_reducer: {error}") from None


def connect_data(
    data: Pairs, model: TwoTower, phases: Phases, seed: int, needs: Collection[str]
) -> None:
    """Passes the data what the other slots decide: sizes, steps, what terms read."""
    data.check_needs(needs)
    data.connect(
        steps=Steps(phases.lengths),
        seed=seed,
        image_size=model.image_size,
        context_length=model.context_length,
        word_reducers=[
            *[None] * len(phases.earlier),
            *(phase.word_reducer for phase in phases.named.values()),
        ],
    )


def _check(name: str, phase: Phase) -> None:
    for field in ("samples", "batch_size"):
        at_least(f"phases.{name}.{field}", getattr(phase, field), 1)
    at_least(f"phases.{name}.learning_rate", phase.learning_rate, 0)
    if phase.rate_scaling != "linear" and phase.rate_batch is None:
        raise ValueError(
            f"phases.{name}.rate_scaling is {phase.rate_scaling} without rate_batch: name the "
            "number of pairs for which learning_rate is meant"
        )
    if phase.rate_batch is not None and phase.rate_batch < 1:
        raise ValueError(
            f"phases.{name}.rate_batch is {phase.rate_batch}: give the number of pairs for which "
            "learning_rate is meant, or leave it out"
        )
    if not 0 <= phase.warmup_samples <= phase.samples:
        raise ValueError(
            f"phases.{name}.warmup_samples is {phase.warmup_samples}: it must lie between 0 and "
            f"the phase's {phase.samples} samples"
        )
    _check_schedule(name, phase)


def _check_schedule(name: str, phase: Phase) -> None:
    rest = phase.samples - phase.warmup_samples
    if not 0 <= phase.cooldown_samples <= rest:
        raise ValueError(
            f"phases.{name}.cooldown_samples is {phase.cooldown_samples}: it must lie between 0 "
            f"and the {rest} samples after the warm-up"
        )
    if phase.cooldown_samples and phase.schedule == "cosine":
        raise ValueError(
            f"phases.{name}.cooldown_samples is {phase.cooldown_samples}: a cosine falls all the "
            "way; use schedule: constant or rsqrt"
        )
    if (phase.schedule == "rsqrt") != (phase.timescale_samples > 0):
        raise ValueError(
            f"phases.{name}.timescale_samples is {phase.timescale_samples} with schedule: "
            f"{phase.schedule}; rsqrt needs a number of pairs (such as 10000 batches), the others "
            "take 0"
        )
