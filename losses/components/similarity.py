"""How two sets of features become logits: a lift of each side, and a function of the inner product.

In: features as the towers give them. Out: vectors whose inner product, through `point`, is the
similarity; logits are `scale` times it. One kernel serves them all, because squared distances and
Lorentzian products are inner products of lifted vectors. The functions grow with the inner product:
ranking alone (evaluation, `Metric`) needs the lifted vectors only.

The Euclidean ones read raw features, multiplied by d^-1/2, as EuCLIP does: Chou and Alam,
"Embedding Geometries of Contrastive Language-Image Pre-Training" (2024). `lorentz` has the
hyperbolic ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..kernels.pairing import Pointwise

Scalars = Mapping[str, Tensor]


class Similarity(nn.Module):
    """Cosine similarity, and the base of the others: the features are normalised already.

    Learned scalars (a curvature) are read by name from what terms see: `objective.scalars` holds
    them, so that terms and evaluation share them.

    Attributes:
        form: suffix of the features it reads: `` are normalised, `.raw` are not.
        point: increasing function of the inner product; None: the inner product itself.
    """

    form: Literal["", ".raw"] = ""
    point: Pointwise | None = None

    def lift_image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b k"]:
        """Returns the vectors of images whose products with those of texts make logits."""
        return image

    def lift_text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b k"]:
        """Returns those of texts."""
        return text

    def scale(self, scale: Float[Tensor, "1"], scalars: Scalars) -> Float[Tensor, "1"]:
        """Returns the factor of the similarity for a temperature's scale."""
        return scale


class Cosine(Similarity):
    """s u.v of normalised embeddings, as CLIP does."""


class Arc(Similarity):
    """-s arccos(u.v): the negative length of the arc between two points of the sphere."""

    def __init__(self):
        super().__init__()
        self.point = NegativeArc()


class Dot(Similarity):
    """s x.y / d of raw features."""

    form = ".raw"

    def lift_image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d"]:
        """Scales to length one on average at the start, whatever d."""
        return image * image.shape[1] ** -0.5

    def lift_text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d"]:
        return text * text.shape[1] ** -0.5


class SquaredDistance(Dot):
    """-s |x - y|^2 / d: the inner product of [2x, -|x|^2, -1] and [y, 1, |y|^2]."""

    def lift_image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d+2"]:
        x = super().lift_image(image, scalars)
        square = x.square().sum(1, keepdim=True)
        return torch.cat([2 * x, -square, -torch.ones_like(square)], 1)

    def lift_text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d+2"]:
        y = super().lift_text(text, scalars)
        square = y.square().sum(1, keepdim=True)
        return torch.cat([y, torch.ones_like(square), square], 1)


class Distance(SquaredDistance):
    """-s |x - y| / d^1/2."""

    def __init__(self):
        super().__init__()
        self.point = NegativeRoot()


class NegativeRoot:
    """-sqrt(-z): a distance from a negative squared one."""

    def value(self, inner: Tensor) -> Tensor:
        """0 where rounding makes a square negative."""
        return inner.neg().clamp_min_(0.0).sqrt_().neg_()

    def derivative(self, inner: Tensor, value: Tensor) -> Tensor:
        """Finite at distance 0, where the vectors it multiplies cancel: the gradient is 0."""
        return value.neg().clamp_min_(smallest(inner)).mul_(2.0).reciprocal_()


class NegativeArc:
    """-arccos(z)."""

    def value(self, inner: Tensor) -> Tensor:
        """Clamps what rounding may have put just outside of [-1, 1]."""
        return inner.clamp(-1.0, 1.0).acos_().neg_()

    def derivative(self, inner: Tensor, value: Tensor) -> Tensor:
        """Finite for equal and opposite vectors, where it multiplies a tangent of length 0."""
        sine = ((1.0 - inner) * (1.0 + inner)).clamp_min_(smallest(inner) ** 2)
        return sine.rsqrt_()


def smallest(inner: Tensor) -> float:
    """Returns the distance below which rounding of inner products of size one hides differences."""
    return torch.finfo(inner.dtype).eps ** 0.5


@dataclass(frozen=True)
class Metric:
    """How evaluation ranks under an objective: by inner products of lifted vectors.

    Attributes:
        similarity: that of the objective.
        scalars: values of its learned scalars.
    """

    similarity: Similarity = field(default_factory=Cosine)
    scalars: Scalars = field(default_factory=dict)

    @property
    def form(self) -> Literal["", ".raw"]:
        """The suffix of the features to be lifted."""
        return self.similarity.form

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "Metric":
        """Returns the metric with its scalars on a device, in a precision."""
        scalars = {name: value.to(device, dtype) for name, value in self.scalars.items()}
        return Metric(self.similarity, scalars)

    def images(self, image: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Lifts features of images."""
        return self.similarity.lift_image(image, self.scalars)

    def texts(self, text: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Lifts features of texts."""
        return self.similarity.lift_text(text, self.scalars)

    def mean_texts(self, mean: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Lifts means of features of texts."""
        return self.texts(mean if self.form else F.normalize(mean, dim=-1))
