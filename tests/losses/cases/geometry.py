"""Every similarity, in a softmax and in a sigmoid, by whole matrices of distances."""

import torch
from term_case import Case, normal, pairs

from counterpoint.losses.components.lorentz import (
    LorentzDistance,
    LorentzInner,
    LorentzSquaredDistance,
)
from counterpoint.losses.components.similarity import Arc, Distance, Dot, SquaredDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.siglip import SigLIP

SCALARS = {"logit_scale": 3.0, "alpha_image": 0.5, "alpha_text": 0.3, "curvature": 0.7}


def raw(generator, b):
    features = {name: 2 * normal(generator, b, 7) for name in ("image.raw", "text.raw")}
    scalars = {k: torch.tensor([v], dtype=torch.float64) for k, v in SCALARS.items()}
    return features | scalars, {}


def exponential(x, alpha, c):
    """MERU, equation 4, with the time of equation 1."""
    v = alpha * x
    n = v.norm(dim=1, keepdim=True)
    space = torch.sinh(c.sqrt() * n) * v / (c.sqrt() * n)
    return space, torch.sqrt(1 / c + space.square().sum(1))


def lorentz(f):
    x, s = exponential(f["image.raw"], f["alpha_image"], f["curvature"])
    y, t = exponential(f["text.raw"], f["alpha_text"], f["curvature"])
    return x @ y.T - torch.outer(s, t)


def lorentz_distance(f):
    return torch.acosh(-f["curvature"] * lorentz(f)) / f["curvature"].sqrt()


def euclid(f):
    return (f["image.raw"][:, None] - f["text.raw"]).norm(dim=-1) / 7**0.5


OF_ALL_PAIRS = {
    Arc: lambda f: -torch.acos(f["image"] @ f["text"].T),
    Dot: lambda f: f["image.raw"] @ f["text.raw"].T / 7,
    Distance: lambda f: -euclid(f),
    SquaredDistance: lambda f: -(euclid(f) ** 2),
    LorentzInner: lorentz,
    LorentzDistance: lambda f: -lorentz_distance(f),
    LorentzSquaredDistance: lambda f: -(lorentz_distance(f) ** 2),
}


def softmax(features, batch, term):
    logits = features["logit_scale"] * OF_ALL_PAIRS[type(term.similarity)](features)
    return -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal().mean() / 2


def sigmoid(features, batch, term):
    logits = (
        features["logit_scale"] * OF_ALL_PAIRS[type(term.similarity)](features)
        + features["logit_bias"]
    )
    signs = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -torch.log(torch.sigmoid(signs * logits)).sum() / len(logits)


def with_bias(generator, b):
    features, batch = raw(generator, b)
    return features | {"logit_bias": torch.tensor([1.5], dtype=torch.float64)}, batch


def case(kind):
    def make(**choices):
        return InfoNCE(similarity=kind(), **choices)

    return Case(make, softmax, pairs if kind is Arc else raw)


CASES = {kind.__name__: case(kind) for kind in OF_ALL_PAIRS} | {
    f"sigmoid_{kind.__name__}": Case(
        lambda kind=kind, **choices: SigLIP(similarity=kind(), **choices), sigmoid, with_bias
    )
    for kind in (Distance, LorentzSquaredDistance)
}
