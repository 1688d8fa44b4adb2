"""Base classes of loss terms: the whole contract, and the inputs that pairwise terms share.

In: features (from the towers) and the batch. Out: named scalars. A value is this rank's share,
scaled so that the *mean over ranks* of values and of gradients is that of the global batch, because
DDP, FSDP2 and ZeRO all average gradients.
"""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from .components.features import Tensors, full_precision, need
from .components.similarity import Similarity
from .distributed.collectives import share
from .distributed.exchange import AllGather, Exchange
from .kernels.pairing import Pairing
from .scalars import Scalar

# Entry of the batch: the samples' weights, float32 [b], 0 or more.
WEIGHT = "weight"


class Term(nn.Module, ABC):
    """One loss. Only `needs` and `forward` must be given; the rest has defaults.

    Terms may hold heads, scales and state, all of it in the checkpoint and in the optimizer; never
    towers or teachers.

    Attributes:
        needs: names of the features and batch entries that it reads; each is computed once.
    """

    needs: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns this rank's share of the loss by name (scalars, see the module's docstring)."""

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"] | None:
        """Returns the loss of each of this rank's samples [b], for the log; None: it has no parts.

        Their mean over the global batch is the loss. Called without gradients, at log steps only,
        by every rank.
        """
        return None

    def ranking_similarity(self) -> Similarity | None:
        """Returns what evaluation should rank by under this term; None: no preference."""
        return None

    @property
    def ahead(self) -> tuple[str, ...]:
        """Names of features that the term gathers from all ranks as the model gives them.

        They are sent as soon as their tower has made them, while the other tower runs. The term
        must give these very tensors as columns to `softmax_sums`, `row_sums` or `softplus_sums`.
        """
        return ()

    def averages(self) -> list[tuple[nn.Module, nn.Module]]:
        """Returns [(online module, its moving average), ...] among the term's own modules.

        The averages follow with the decay of the run's `ema`, after each optimizer step.
        """
        return []

    def sampled(self, features: Tensors, batch: Tensors, seed: int) -> Float[Tensor, ""]:
        """Returns this rank's share of the loss with labels drawn from the term's own softmax.

        Scaled so that the mean of its squared gradient is the diagonal of the loss's Gauss-Newton
        matrix: what Sophia-G estimates curvature from.

        Args:
            features: as for `forward`.
            batch: as for `forward`, with `key`.
            seed: of the draw, below 2^62.
        """
        raise NotImplementedError

    @property
    def reads_weight(self) -> bool:
        """Whether the loss is the mean weighted by the batch's `weight`, if it has that entry.

        The mean is sum_i w_i l_i / sum_i w_i over the global batch; a weight of 0 takes a sample's
        own loss away, and leaves the sample as a negative of the others.
        """
        return False

    @property
    def can_sample(self) -> bool:
        """Whether the term has a softmax to draw labels from (`sampled`)."""
        return type(self).sampled is not Term.sampled


class SampleTerm(Term):
    """A loss that is a mean over the samples of the global batch, by weight where they have one.

    Attributes:
        name: of the value in reports.
    """

    name: str

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{NAME: value}`, this rank's share."""
        return {self.name: share(self.per_sample(features, batch), batch.get(WEIGHT))}

    @property
    def reads_weight(self) -> bool:
        # A derived class with a `forward` of its own answers for itself.
        return type(self).forward is SampleTerm.forward

    @abstractmethod
    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]: ...


class PairwiseTerm(SampleTerm):
    """A loss over all pairs.

    Args:
        exchange: how the other ranks' columns arrive; the default is exact.
        scale: the logit scale: a scalar of its own, or the name of a feature (the model's
            `logit_scale`, or a scalar of the objective that several terms share).
        tile_bytes: memory of one block of logits; None: 32 MiB, on a GPU 256 MiB.

    Attributes:
        bias: as `scale`, in terms whose logits have one.
    """

    bias: Scalar | str

    def __init__(
        self,
        exchange: Exchange | None = None,
        scale: Scalar | str = "logit_scale",
        tile_bytes: int | None = None,
    ):
        super().__init__()
        self.exchange = exchange or AllGather()
        self.scale = scale
        self.tile_bytes = tile_bytes

    def take(self, features: Tensors, *names: str) -> list[Tensor]:
        """Returns features in full precision, passed through the exchange."""
        values = full_precision(*(need(features, name, self) for name in names))
        return [self.exchange.enter(value) for value in values]

    def sends_as_is(self, similarity: Similarity) -> bool:
        """Whether images are gathered as the model gives them: neither lifted nor divided."""
        is_lifted = similarity.form or type(similarity).lift_image is not Similarity.lift_image
        return type(self.exchange) is AllGather and not is_lifted

    def logit_scale(self, features: Tensors) -> Float[Tensor, "1"]:
        """Returns the scale [1]."""
        if isinstance(self.scale, str):
            (scale,) = full_precision(need(features, self.scale, self))
            return scale
        return full_precision(self.scale())[0]

    def logit_bias(self, features: Tensors) -> Float[Tensor, "1"]:
        """Returns the bias [1] of a term that has one.

        Raises:
            ValueError: the model has none.
        """
        if isinstance(self.bias, str):
            fix = "set objective.logit_bias_init (SigLIP: -10)"
            (bias,) = full_precision(need(features, self.bias, self, fix))
            return bias
        return full_precision(self.bias())[0]

    def pairing(self, **choices: Any) -> Pairing:
        """Returns the pairing with this term's exchange and tiles; `choices` are its fields."""
        return Pairing(exchange=self.exchange, tile_bytes=self.tile_bytes, **choices)
