"""Losses of prefixes."""

import torch
from term_case import Case, normal, pairs
from torch.nn import functional as F

from counterpoint.losses.components.similarity import SquaredDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.wrappers.matryoshka import Matryoshka


def cross_entropy(logits):
    return -(logits.log_softmax(0) + logits.log_softmax(1)).diagonal().mean() / 2


def cosine(features, batch, term):
    loss = 0.0
    for width, weight in zip(term.widths, term.weights, strict=True):
        u, v = features["image"], features["text"]
        if width < 7:
            u, v = (F.normalize(x[:, :width], dim=1) for x in (u, v))
        loss = loss + weight * cross_entropy(features["logit_scale"] * u @ v.T)
    return loss


def squared(features, batch, term):
    loss = 0.0
    for width in term.widths:
        x, y = (features[f"{name}.raw"][:, :width] for name in ("image", "text"))
        distance = (x[:, None] - y[None]).square().mean(-1)
        loss = loss + cross_entropy(-features["logit_scale"] * distance)
    return loss


def raw(generator, b):
    features = {f"{name}.raw": normal(generator, b, 7) for name in ("image", "text")}
    return features | {"logit_scale": torch.tensor([3.0], dtype=torch.float64)}, {}


CASES = {
    "weighted": Case(
        lambda **choices: Matryoshka(InfoNCE(**choices), [2, 3, 7], [0.5, 2.0, 1.0]), cosine, pairs
    ),
    "of_distances": Case(
        lambda **choices: Matryoshka(InfoNCE(SquaredDistance(), **choices), [4, 7]), squared, raw
    ),
}
