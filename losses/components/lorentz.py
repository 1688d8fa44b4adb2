"""Similarities in hyperbolic space: features as tangent vectors at the origin of a hyperboloid.

In: raw features x, and three learned scalars by name: `alpha_image`, `alpha_text` and `curvature`
c. Out: points of the unit hyperboloid, that is of the one of curvature c times sqrt(c):
a = sinh(n) / n sqrt(c) alpha x with n = |sqrt(c) alpha x|, and their time t = sqrt(1 + |a|^2).
Then c <x, y>_L = a.b - t_a t_b, which is the product of [a, t_a] and [b, -t_b], and the distance is
arccosh(-c <x, y>_L) / sqrt(c). Desai et al., "Hyperbolic Image-Text Representations" (MERU, 2023),
section 3; squared distances and products as of EuCLIP (Chou and Alam, 2024).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..kernels.pairing import Pointwise
from ..scalars import Positive
from .features import full_precision, need
from .similarity import Scalars, Similarity, smallest

# Beyond, a point's coordinates would leave too little of float32 to the difference of products.
LONGEST = math.asinh(2**15)


class Lorentz(Similarity):
    """The lift that the three have in common, and what their scalars are divided by."""

    form = ".raw"

    def lift_image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d+1"]:
        """Space, then time."""
        return torch.cat(hyperboloid(image, "alpha_image", scalars, self), 1)

    def lift_text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Float[Tensor, "b d+1"]:
        """Space, then minus time."""
        space, time = hyperboloid(text, "alpha_text", scalars, self)
        return torch.cat([space, -time], 1)


class LorentzInner(Lorentz):
    """s <x, y>_L."""

    def scale(self, scale: Float[Tensor, "1"], scalars: Scalars) -> Float[Tensor, "1"]:
        """s / c."""
        return scale / scalar(scalars, "curvature", self)


class LorentzSquaredDistance(LorentzInner):
    """-s d(x, y)^2."""

    def __init__(self):
        super().__init__()
        self.point: Pointwise | None = NegativeSquaredArcosh()


class LorentzDistance(Lorentz):
    """-s d(x, y), as MERU does."""

    def __init__(self):
        super().__init__()
        self.point = NegativeArcosh()

    def scale(self, scale: Float[Tensor, "1"], scalars: Scalars) -> Float[Tensor, "1"]:
        """s / sqrt(c)."""
        return scale * scalar(scalars, "curvature", self).rsqrt()


class NegativeArcosh:
    """-arccosh(-z), written as -arcsinh(sqrt(z^2 - 1)), which loses no digits for near points."""

    def value(self, inner: Tensor) -> Tensor:
        """0 where rounding puts -z below 1."""
        return _sinh_of_distance(inner).asinh_().neg_()

    def derivative(self, inner: Tensor, value: Tensor) -> Tensor:
        """Finite at distance 0, where the vectors it multiplies cancel: the gradient is 0."""
        return _sinh_of_distance(inner).clamp_min_(smallest(inner)).reciprocal_()


class NegativeSquaredArcosh:
    """-arccosh(-z)^2."""

    def value(self, inner: Tensor) -> Tensor:
        """0 where rounding puts -z below 1."""
        return _sinh_of_distance(inner).asinh_().square_().neg_()

    def derivative(self, inner: Tensor, value: Tensor) -> Tensor:
        """2 d / sinh(d), which is 2 at distance 0."""
        sinh = _sinh_of_distance(inner).clamp_min_(smallest(inner) ** 2)
        return sinh.asinh().div_(sinh).mul_(2.0)


def hyperboloid(
    features: Float[Tensor, "b d"], alpha: str, scalars: Scalars, owner: nn.Module
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b 1"]]:
    """Returns space and time on the unit hyperboloid.

    Args:
        features: raw, in full precision.
        alpha: name of the scalar that multiplies them.
        scalars: what terms see.
        owner: who asks, for the message.

    Raises:
        ValueError: a scalar is missing.
    """
    factor = scalar(scalars, alpha, owner) * scalar(scalars, "curvature", owner).sqrt()
    tangent = factor * features
    length = torch.linalg.vector_norm(tangent, dim=1, keepdim=True).clamp_min(1e-12)
    space = length.clamp_max(LONGEST).sinh() / length * tangent
    return space, (1 + space.square().sum(1, keepdim=True)).sqrt()


def scalar(scalars: Scalars, name: str, owner: nn.Module) -> Float[Tensor, "1"]:
    """Returns a learned scalar [1] in full precision.

    Raises:
        ValueError: it is missing.
    """
    fix = f"add {name} to objective.scalars ({Positive.__module__}.Positive)"
    (value,) = full_precision(need(scalars, name, owner, fix))
    return value


def _sinh_of_distance(inner: Tensor) -> Tensor:
    """sqrt(z^2 - 1) as the root of (-z - 1)(-z + 1)."""
    more = inner.neg().sub_(1.0).clamp_min_(0.0)
    return more.addcmul_(more, more, value=0.5).mul_(2.0).sqrt_()
