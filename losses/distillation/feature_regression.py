"""Regression: one feature is drawn towards another, which stays where it is.

In: two named features, or a stored one from the batch. Out: their mean distance over the samples
that have a target. Nothing but a count is exchanged.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..base import WEIGHT, Term
from ..components.features import Tensors, full_precision, need
from ..distributed.collectives import share
from ..wrappers.masked import needed


def cosine(guess: Float[Tensor, "b *t d"], target: Float[Tensor, "b *t d"]) -> Float[Tensor, "b"]:
    """1 - cos of each row's angle; of several rows a sample, their mean."""
    return 1 - F.cosine_similarity(guess, target, dim=-1)[..., None].flatten(1).mean(1)


def squared(guess: Float[Tensor, "b *t d"], target: Float[Tensor, "b *t d"]) -> Float[Tensor, "b"]:
    """Mean over the dimensions of the squared difference."""
    return (guess - target).square().flatten(1).mean(1)


def smooth_l1(
    guess: Float[Tensor, "b *t d"], target: Float[Tensor, "b *t d"]
) -> Float[Tensor, "b"]:
    """Mean over the dimensions of the absolute difference, squared and halved below 1."""
    return F.smooth_l1_loss(guess, target, reduction="none").flatten(1).mean(1)


class FeatureRegression(Term):
    """Mean distance between a feature and a target that gets no gradient.

    Feature distillation from a teacher, online or stored, and consistency with the moving average.
    Of states (`image.tokens`) it is the mean over patches, as many on both sides: a feature map,
    with a linear head in the place of a 1x1 convolution (DC-CLIP).

    Args:
        feature: what learns, such as `image` or `image.raw`.
        target: what it is drawn to, such as `teacher.NAME.image`, `ema.image` or the entry of a
            sidecar; unit vectors against unit vectors, or `.raw` against `.raw`.
        distance: of each row from its target: a function here or one like it.
        head: trained, applied to the feature first; needed where the widths differ.
        valid: batch entry, bool [b]: which samples have a target, such as `SIDECAR.present`. None:
            all have.
    """

    def __init__(
        self,
        feature: str,
        target: str,
        # Bare: the parser of run files takes what returns a Tensor for a class that it is to make.
        distance: Callable = cosine,
        head: nn.Module | None = None,
        valid: str | None = None,
    ):
        super().__init__()
        self.feature = feature
        self.target = target
        self.distance = distance
        self.head = nn.Identity() if head is None else head
        self.valid = valid
        self.needs = (feature, target, *(() if valid is None else needed(valid)))

    def forward(self, features: Tensors, batch: Tensors) -> dict[str, Tensor]:
        """Returns `{"regression": value}`, this rank's share; 0 where no sample has a target."""
        losses = self._losses(features, batch)
        weights = batch.get(WEIGHT)
        if self.valid is not None:
            valid = batch[self.valid].to(losses.dtype)
            weights = valid if weights is None else valid * weights
        return {"regression": share(losses, weights)}

    @property
    def reads_weight(self) -> bool:
        return True

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"] | None:
        """Distances; None where some samples may have no target."""
        return self._losses(features, batch) if self.valid is None else None

    def _losses(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        fix = "name a view, a teacher's feature or an entry of data.sidecars"
        entry = need({**batch, **features}, self.target, self, fix)
        feature, target = full_precision(need(features, self.feature, self), entry.detach())
        (guess,) = full_precision(self.head(feature))
        if guess.shape[1:-1] != target.shape[1:-1]:
            raise ValueError(
                f"'{self.feature}' is {list(guess.shape[1:])} a sample and '{self.target}' "
                f"{list(target.shape[1:])}: both need the same grid of patches and the same tokens "
                "before it"
            )
        if guess.shape[-1] != target.shape[-1]:
            raise ValueError(
                f"'{self.feature}' has {guess.shape[-1]} numbers a sample and '{self.target}' "
                f"{target.shape[-1]}: give the term a head that maps the one to the other, such as "
                "counterpoint.losses.components.heads.MLP with two widths"
            )
        if self.valid is not None:
            # Whatever stands in for a missing target, its gradient must be finite.
            missing = ~batch[self.valid].bool().view(-1, *[1] * (target.ndim - 1))
            target = target.masked_fill(missing, 1.0)
        return self.distance(guess, target)
