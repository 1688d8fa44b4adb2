"""The contract of a loss term, and what every pairwise term needs before it computes logits.

In: features (from the towers) and the batch. Out: named scalars. A value is this rank's share,
scaled so that the *mean over ranks* of values and of gradients is that of the global batch, because
DDP, FSDP2 and ZeRO all average gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

# What a two-tower model, a teacher and the average have besides features.
MODEL_SCALARS = ("logit_scale", "logit_bias")


class Term(nn.Module, ABC):
    """One loss. `needs` names the features and batch entries it reads; each is computed once."""

    needs: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Returns this rank's share of the loss by name (scalars, see the module's docstring)."""

    def per_sample(
        self, features: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> Float[Tensor, "b"] | None:
        """Returns the loss of each of this rank's samples [b], for the log; None: it has no parts.

        Their mean over the global batch is the loss. Called without gradients, at log steps only,
        by every rank.
        """
        return None


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Lifts half-precision tensors to float32; float32 and float64 stay as they are."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def need(features: Mapping[str, Tensor], name: str, term: nn.Module, fix: str = "") -> Tensor:
    """Returns `features[name]` or says in one sentence why the term cannot work without it."""
    if name not in features:
        fix = fix or f"there are {', '.join(sorted(features))}"
        raise ValueError(f"{type(term).__name__} needs the feature '{name}': {fix}")
    return features[name]
