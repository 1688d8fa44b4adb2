"""How many samples each step takes, and which of them are this rank's.

In: the phases as (number of steps, global batch size), whose turn each step is, and the samples to
skip. Out: positions in the plan's endless sequence for any step, and a rank's part of them. The
global batch of a step never depends on the world size.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np


@dataclass(frozen=True)
class Turn:
    """The steps that take a batch of a stream: `count` from `first` on, of every `cycle`."""

    first: int = 0
    count: int = 1
    cycle: int = 1

    def taken(self, step: int) -> int:
        """Returns how many of the steps before `step` are among them."""
        cycles, rest = divmod(step, self.cycle)
        return cycles * self.count + min(max(rest - self.first, 0), self.count)


class Steps:
    """Maps steps to positions.

    Args:
        phases: (num_steps, batch_size) of each phase in order; batch_size is the global batch.
        turn: the steps that take a batch; the others take none.

    Attributes:
        total_steps: steps of all phases.
        left_out: (step, samples) in the order of the steps: from that step on, so many samples
            more are skipped without being trained on.

    Raises:
        ValueError: there are no steps, or a number is not positive.
    """

    def __init__(self, phases: Sequence[tuple[int, int]], turn: Turn = Turn()):
        self.turn = turn
        self.phases = [(int(steps), int(size)) for steps, size in phases]
        self.left_out: list[tuple[int, int]] = []
        for steps, size in self.phases:
            if steps < 0 or size < 1:
                raise ValueError(
                    f"a phase of {steps} steps with batch size {size} cannot run; give at least "
                    "1 step and a batch size of 1"
                )
        self._first_steps = [0, *accumulate(steps for steps, _ in self.phases)]
        taken = [turn.taken(step) for step in self._first_steps]
        samples = [
            (taken[index + 1] - taken[index]) * size for index, (_, size) in enumerate(self.phases)
        ]
        self._first_positions = [0, *accumulate(samples)]
        self.total_steps = self._first_steps[-1]
        self.total_samples = self._first_positions[-1]
        if not self.total_steps:
            raise ValueError("the phases have no steps; give one of them num_steps of 1 or more")

    def phase(self, step: int) -> int:
        """Returns the index of the phase that a step belongs to."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside the {self.total_steps} steps of the run")
        return bisect_right(self._first_steps, step) - 1

    def batch_size(self, step: int) -> int:
        """Returns the global batch size at a step: 0 if it takes no batch."""
        size = self.phases[self.phase(step)][1]
        return size * (self.turn.taken(step + 1) - self.turn.taken(step))

    def first_position(self, step: int) -> int:
        """Returns how many samples were trained on before a step; `total_steps` is allowed."""
        if step == self.total_steps:
            return self.total_samples
        index = self.phase(step)
        done = self.turn.taken(step) - self.turn.taken(self._first_steps[index])
        return self._first_positions[index] + done * self.phases[index][1]

    def positions(self, step: int) -> np.ndarray:
        """Returns the positions of the global batch of a step, ascending int64 [batch_size]."""
        size = self.batch_size(step)
        first = self.first_position(step) + self.num_left_out(step)
        return np.arange(first, first + size, dtype=np.int64)

    def num_left_out(self, step: int) -> int:
        """Returns how many samples were skipped before a step."""
        return sum(samples for first, samples in self.left_out if first <= step)

    def passing_over(self, step: int, end: int) -> list[tuple[int, int]]:
        """Returns what `left_out` becomes when a run goes back.

        Args:
            step: the step that the run goes back to.
            end: one past the last step whose samples are skipped; `step` continues after them.
        """
        assert step < end <= self.total_steps, (step, end)
        begin = self.first_position(step) + self.num_left_out(step)
        stop = self.first_position(end) + self.num_left_out(end - 1)
        earlier = [(first, samples) for first, samples in self.left_out if first <= step]
        return [*earlier, (step, stop - begin)]

    @staticmethod
    def deal(positions: np.ndarray, lanes: np.ndarray, rank: int, world_size: int) -> np.ndarray:
        """Returns this rank's part of a global batch, ascending int64 [batch_size / world_size].

        Samples are dealt by lane: rank 0 takes the lowest lanes, the next rank those that follow.
        So a rank, and the consecutive ranks of a node, read few lanes and touch few shards. The
        parts of all ranks are the global batch, for any world size.

        Args:
            positions: positions of the global batch, ascending int64 [batch_size].
            lanes: the plan's lane of each position, int64 [batch_size].
            rank: this process.
            world_size: number of processes.

        Raises:
            ValueError: the batch size does not divide by the world size.
        """
        assert 0 <= rank < world_size, (rank, world_size)
        check_divides(len(positions), world_size)
        size = len(positions) // world_size
        dealt = np.argsort(lanes, kind="stable")[rank * size : (rank + 1) * size]
        return positions[np.sort(dealt)]

    def check_world_size(self, world_size: int) -> None:
        """Raises the ValueError of `deal` for the first phase that cannot be split."""
        for _, size in self.phases:
            check_divides(size, world_size)


def check_divides(batch_size: int, world_size: int, prefix: str = "") -> None:
    """Raises a ValueError unless every rank gets the same number of samples.

    Args:
        batch_size: samples of the global batch.
        world_size: number of ranks.
        prefix: what precedes `batch_size` in the message, such as `phases.train.`.
    """
    if batch_size % world_size:
        below = batch_size // world_size * world_size
        nearest = f"{below} or {below + world_size}" if below else f"{world_size}"
        raise ValueError(
            f"{prefix}batch_size={batch_size} (the global batch) does not divide by the world size "
            f"{world_size}; use {nearest}, or another number of processes"
        )
