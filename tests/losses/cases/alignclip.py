"""In-modal separation."""

import torch
from term_case import Case, normal, pairs
from torch.nn import functional as F

from counterpoint.losses.alignclip import Removed, Rescaled, Separation


def formula(features, batch, term):
    u, v, scale = features["image"], features["text"], features["logit_scale"][0]
    e = batch["sentence.embedding"] if batch else features["teacher.large.text"]
    alike = F.normalize(e, dim=1) @ F.normalize(e, dim=1).T
    losses = []
    for side in term.sides:
        rows = {"image": u, "text": v}[side]
        for i in range(len(u)):
            own = scale * u[i] @ v[i]
            logits = [own]
            for j in range(len(u)):
                cosine = rows[i] @ rows[j]
                if j != i and isinstance(term.negatives, Rescaled):
                    logits.append(scale * (1 - alike[i, j].detach()) * cosine)
                elif j != i and alike[i, j] < 0.3:
                    logits.append(scale * cosine)
            losses.append(torch.stack(logits).exp().sum().log() - own)
    return sum(losses) / len(u)


def stored(generator, b):
    features, _ = pairs(generator, b)
    return features, {"sentence.embedding": normal(generator, b, 5)}


def taught(generator, b):
    features, _ = pairs(generator, b)
    return features | {"teacher.large.text": normal(generator, b, 5)}, {}


def images_only(**choices):
    return Separation("teacher.large.text", sides=["image"], **choices)


teacher = frozenset({"teacher.large.text"})
CASES = {
    "rescaled": Case(lambda **c: Separation("sentence.embedding", **c), formula, stored),
    "removed": Case(
        lambda **c: Separation("sentence.embedding", Removed(0.3), **c), formula, stored
    ),
    "images_only": Case(images_only, formula, taught, constants=teacher),
}
