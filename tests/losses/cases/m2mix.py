"""Mixed negatives."""

import math

import torch
from term_case import Case, pairs

from counterpoint.losses.m2mix import M2Mix


def formula(features, batch, term):
    u, v, scale = features["image"], features["text"], term.scale()
    bits = sum(batch["key"].tolist()) % 2**64
    share = math.sin(math.pi / 2 * (bits >> 11) / 2**53) ** 2
    mixed, losses = [], []
    for a, b in zip(u, v, strict=True):
        angle = torch.acos(a @ b)
        parts = torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b
        mixed.append(parts / torch.sin(angle))
    for anchors in (u, v):
        for i, anchor in enumerate(anchors):
            logits = [scale * anchor @ m for m in mixed]
            logits[i] = scale * u[i] @ v[i]
            losses.append(torch.stack(logits).exp().sum().log() - logits[i])
    return sum(losses) / len(u)


def inputs(generator, b):
    features, _ = pairs(generator, b)
    key = torch.randint(-(2**63), 2**63 - 1, (b,), generator=generator)
    return features, {"key": key}


# Of a rank's batch alone another share is drawn: `Local` is no mean of the ranks' formulas.
CASES = {"m2mix": Case(M2Mix, formula, inputs, is_mean=False)}
