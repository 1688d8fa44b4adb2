"""`trainer.gradient_clip_val` as a clipper, where no `clip` is named."""

from collections.abc import Mapping

from torch import nn

from ..grad_clip.base import Clipped, Clipper
from ..grad_clip.fixed import Norm
from ..strategies.sharded_tensors import Shares
from .value import Value


class Unclipped(Clipper):
    """Measures only."""

    def clip(self, shares: Shares, named: Mapping[str, nn.Parameter]) -> Clipped:
        """The norm."""
        return Clipped(shares.norms([list(named.values())])[0])


def trainers_clipper(value: float | None, algorithm: str | None) -> Clipper:
    """What the trainer's `gradient_clip_val` and `gradient_clip_algorithm` ask for."""
    if not value:
        return Unclipped()
    return Value(value) if algorithm == "value" else Norm(value)


def check_no_other(clipper: Clipper | None, gradient_clip_val: float | None) -> None:
    """Refuses two clippers, one after the other.

    Raises:
        ValueError: a clipper is named and the trainer clips as well.
    """
    if clipper is not None and gradient_clip_val:
        raise ValueError(
            f"clip names {type(clipper).__name__} and trainer.gradient_clip_val is "
            f"{gradient_clip_val}: set trainer.gradient_clip_val=null, one of them clips"
        )
