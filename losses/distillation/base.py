"""What terms share that learn from a teacher's features.

In: names of a student's and a teacher's features. Out: the pairs of them.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..base import PairwiseTerm
from ..components.features import Tensors


class TeacherTerm(PairwiseTerm):
    """A loss over all pairs of the student and the same pairs of one teacher or more.

    Features of teachers come from frozen models, or from the batch when they are stored.

    Args:
        teachers: prefixes of the teachers' features, such as `teacher.large` for
            `teacher.large.image` and `teacher.large.text`, of any width.
        form: suffix of all features: none for normalised ones, `.raw` for those before it.
        pairwise: of `PairwiseTerm`.

    Raises:
        ValueError: no teachers.
    """

    def __init__(self, teachers: Sequence[str], form: Literal["", ".raw"] = "", **pairwise: Any):
        super().__init__(**pairwise)
        if isinstance(teachers, str) or not teachers:
            raise ValueError(f"teachers={teachers!r} must be a list such as [teacher.large]")
        self.teachers = tuple(teachers)
        self.pairs = [
            (f"{prefix}image{form}", f"{prefix}text{form}")
            for prefix in ("", *(f"{teacher}." for teacher in teachers))
        ]
        self.needs = tuple(name for pair in self.pairs for name in pair)

    def sides(self, features: Tensors, batch: Tensors) -> list[list[Tensor]]:
        """Returns images and texts of the student, then of each teacher."""
        available = {**batch, **features}
        return [self.take(available, *pair) for pair in self.pairs]

    def numbers_of_teachers(
        self, given: Sequence[float] | None, name: str, features: Tensors
    ) -> list[Tensor]:
        """Returns a number [1] for each teacher: those given, or each teacher's own `name`."""
        if given is None:
            return self.take(features, *(f"{teacher}.{name}" for teacher in self.teachers))
        device = features[self.needs[0]].device
        return [torch.full((1,), float(number), device=device) for number in given]

    def also_need(self, name: str, given: Sequence[float] | None) -> None:
        """Adds each teacher's own `name` to the needs where no numbers are given for it.

        Raises:
            ValueError: another number of them than of teachers.
        """
        if given is None:
            self.needs += tuple(f"{teacher}.{name}" for teacher in self.teachers)
        elif len(given) != len(self.teachers):
            raise ValueError(
                f"{list(given)} for each teacher's {name} must be one number for each of "
                f"{list(self.teachers)}, or be left out to take their own"
            )
