"""Entailment cones, by the laws of cosines."""

import torch
from term_case import Case, normal

from counterpoint.losses.entailment import Entailment, EuclideanCone, HyperbolicCone

SCALARS = {"alpha_image": 0.5, "alpha_text": 0.3, "curvature": 0.7}


def inputs(generator, b):
    """Images near their texts or beyond them, so that some lie in the cone and some outside."""
    text = 2 * normal(generator, b, 7)
    image = text * torch.linspace(0.5, 4.0, b)[:, None] + 0.2 * normal(generator, b, 7)
    scalars = {k: torch.tensor([v], dtype=torch.float64) for k, v in SCALARS.items()}
    return {"image.raw": image, "text.raw": text} | scalars, {}


def euclidean(features, batch, term):
    x, y = (features[name] / 7**0.5 for name in ("text.raw", "image.raw"))
    away = y - x
    angle = torch.acos((away * x).sum(1) / (away.norm(dim=1) * x.norm(dim=1)))
    return torch.relu(angle - torch.asin(term.cone.min_radius / x.norm(dim=1))).mean()


def exponential(v, c):
    n = v.norm(dim=1, keepdim=True)
    space = torch.sinh(c.sqrt() * n) * v / (c.sqrt() * n)
    return space, torch.sqrt(1 / c + space.square().sum(1))


def hyperbolic(features, batch, term):
    """MERU, equations 8 to 10."""
    c = features["curvature"]
    x, x_time = exponential(features["alpha_text"] * features["text.raw"], c)
    y, y_time = exponential(features["alpha_image"] * features["image.raw"], c)
    inner = c * ((x * y).sum(1) - x_time * y_time)
    cosine = (y_time + x_time * inner) / (x.norm(dim=1) * torch.sqrt(inner**2 - 1))
    aperture = torch.asin(2 * term.cone.min_radius / (c.sqrt() * x.norm(dim=1)))
    return torch.relu(torch.acos(cosine) - aperture).mean()


CASES = {
    "euclidean": Case(lambda: Entailment(EuclideanCone()), euclidean, inputs, False),
    "hyperbolic": Case(lambda: Entailment(HyperbolicCone(0.08)), hyperbolic, inputs, False),
}
