"""Clippers: gradients in, gradients within a limit and what to log out.

A clipper is called once a step, between the backward pass and the optimizer. Its state is a few
tensors of fixed size on the gradients' device; no step waits for them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..strategies.sharded_tensors import Tensors

EPS = 1e-6


@dataclass
class Clipped:
    """What happened at one step.

    Attributes:
        norm: global norm of the gradient before clipping [].
        report: values to log [].
    """

    norm: Tensor
    report: dict[str, Tensor] = field(default_factory=dict)


class Clipper(ABC):
    """Clips gradients; each method has to work in every strategy, through `Tensors`."""

    @abstractmethod
    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        """Clips gradients in place.

        A gradient with a non-finite norm changes no statistics; the spike guard decides whether its
        step is taken.

        Args:
            tensors: the strategy's adapter for gradients.
            named: the trainable parameters.
        """

    def reset(self) -> None:  # noqa: B027, most have nothing to forget
        """Forgets the past: at the start of a phase norms may be of another size."""

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the state for the checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what `state_dict` gave.

        Raises:
            ValueError: it is the state of another clipper.
        """
        current = self.state_dict()
        if {k: v.shape for k, v in current.items()} != {k: v.shape for k, v in state.items()}:
            raise ValueError(
                f"the checkpoint holds the state of another clipper ({sorted(state)}, this one has "
                f"{sorted(current)}): resume with the `grad_clip` the run was started with"
            )
        for key, value in state.items():
            current[key].copy_(value)


class Threshold(Clipper):
    """A clipper of the global norm: subclasses compute a limit from the stream of norms.

    Attributes:
        state: the statistics; changed in place by `threshold`.
    """

    def __init__(self, **state: Tensor):
        self.state = state

    @abstractmethod
    def threshold(self, norm: Tensor) -> Tensor:
        """Updates the statistics by a norm [] and returns this step's limit []; inf: none."""

    def limit(self, norm: Tensor) -> Tensor:
        """Calls `threshold` with the statistics on the norm's device."""
        for key, value in self.state.items():
            if value.device != norm.device:
                self.state[key] = value.to(norm.device)
        return self.threshold(norm.detach().float())

    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        parameters = list(named.values())
        norm = tensors.norms([parameters])[0]
        limit = self.limit(norm)
        tensors.scale(parameters, factor(norm, limit))
        return Clipped(
            norm, {"grad_clip/limit": limit, "grad_clip/clipped": (norm > limit).float()}
        )

    def reset(self) -> None:
        for value in self.state.values():
            value.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the statistics themselves, not copies."""
        return dict(self.state)


def factor(norm: Tensor, limit: Tensor) -> Tensor:
    """Returns what a gradient is multiplied by: 1 within the limit (as torch's clip_grad_norm_)."""
    return (limit / (norm + EPS)).clamp(max=1.0)


def finite_or(value: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Returns `new` where `value` is finite, else `old`."""
    return torch.where(value.isfinite(), new, old)


def remember(history: Tensor, count: Tensor, norm: Tensor) -> None:
    """Writes a finite norm over the oldest one; `count` is of all norms so far."""
    index = (count % len(history)).reshape(1)
    history.scatter_(0, index, finite_or(norm, history[index], norm.reshape(1)))
    count.add_(norm.isfinite())
