"""Text entails image: an image should lie in the cone that starts at its text.

L = 1/B sum_i max(0, angle(t_i, v_i) - aperture(t_i)). The angle at the text t between the way to
the image v and the way straight away from the origin is atan2(|v_across|, w_t v_along - w_v |t|)
with v's parts along t and across it; w are times on the unit hyperboloid, and 1 in Euclidean space.
The aperture is arcsin(K / |t|), in hyperbolic space arcsin(2K / |t|). Ganea et al., "Hyperbolic
Entailment Cones" (2018); Desai et al. (MERU, 2023), section 3.2; Chou and Alam (EuCLIP, 2024).
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .base import SampleTerm
from .components.features import Tensors, full_precision, need
from .components.lorentz import hyperboloid
from .components.similarity import Scalars, smallest

# Of each point: space and time.
Points = tuple[Float[Tensor, "b d"], Float[Tensor, "b"]]


class Cone(nn.Module):
    """A geometry in which points have cones.

    Args:
        min_radius: K: texts within it (Euclidean space; in hyperbolic space within 2K of the unit
            hyperboloid) have the widest cone, a half space.
    """

    reach: float

    def __init__(self, min_radius: float = 0.1):
        super().__init__()
        if min_radius <= 0:
            raise ValueError(f"min_radius is a length above 0 (MERU: 0.1), not {min_radius:g}")
        self.min_radius = min_radius

    @abstractmethod
    def image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        """Returns space and time of images."""

    @abstractmethod
    def text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        """The same of texts."""

    def aperture(self, radius: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Half the angle of the cones of texts at these distances from the origin (in space)."""
        nearest = self.reach * self.min_radius * (1 + 4 * torch.finfo(radius.dtype).eps)
        return (self.reach * self.min_radius / radius.clamp_min(nearest)).asin()


class EuclideanCone(Cone):
    """Of raw features times d^-1/2, as in the Euclidean similarities."""

    reach = 1.0

    def image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        # There is no time: 1.
        return image * image.shape[1] ** -0.5, torch.ones_like(image[:, 0])

    def text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        return self.image(text, scalars)


class HyperbolicCone(Cone):
    """Of points of the hyperboloid, with the scalars of the Lorentzian similarities."""

    reach = 2.0

    def image(self, image: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        space, time = hyperboloid(image, "alpha_image", scalars, self)
        return space, time.squeeze(1)

    def text(self, text: Float[Tensor, "b d"], scalars: Scalars) -> Points:
        space, time = hyperboloid(text, "alpha_text", scalars, self)
        return space, time.squeeze(1)


class Entailment(SampleTerm):
    """Mean over pairs of how far the image lies outside its text's cone, in radians.

    Args:
        cone: the geometry; that of the similarity beside it.
    """

    needs = ("image.raw", "text.raw")
    name = "entailment"

    def __init__(self, cone: Cone):
        super().__init__()
        self.cone = cone

    def per_sample(self, features: Tensors, batch: Tensors) -> Float[Tensor, "b"]:
        """Angle beyond the cone of each pair; reads `image.raw`, `text.raw` [b, d]."""
        image, text = full_precision(*(need(features, name, self) for name in self.needs))
        apex, apex_time = self.cone.text(text, features)
        point, point_time = self.cone.image(image, features)
        angle = exterior_angle(apex, apex_time, point, point_time)
        radius = torch.linalg.vector_norm(apex, dim=1)
        return (angle - self.cone.aperture(radius)).clamp_min(0.0)


def exterior_angle(
    apex: Float[Tensor, "b d"],
    apex_time: Float[Tensor, "b"],
    point: Float[Tensor, "b d"],
    point_time: Float[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """The angle at the apex, 0 to pi.

    Where there is none it is 0, without gradient: of an image at its text, and of a text at the
    origin, which entails everything.
    """
    tiny = smallest(apex)
    radius = torch.linalg.vector_norm(apex, dim=1)
    direction = apex / radius.clamp_min(tiny)[:, None]
    along = (point * direction).sum(1)
    across = torch.linalg.vector_norm(point - along[:, None] * direction, dim=1)
    forward = apex_time * along - radius * point_time
    undefined = (torch.hypot(across, forward) < tiny) | (radius < tiny)
    return torch.atan2(across.masked_fill(undefined, 0.0), forward.masked_fill(undefined, 1.0))
