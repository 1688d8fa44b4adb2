"""Two views of one modality."""

import torch
from term_case import Case, normal
from torch import nn
from torch.nn import functional as F

from counterpoint.losses.self_supervision.simclr import SimCLR


def formula(features, batch, term):
    views = [features["image.strong_1.raw"], features["image.strong_2.raw"]]
    z = F.normalize(torch.cat([term.head(view) for view in views]), dim=1)
    b = len(z) // 2
    losses = []
    for anchor in range(2 * b):
        logits = z @ z[anchor] / 0.1
        others = torch.cat([logits[:anchor], logits[anchor + 1 :]])
        losses.append(others.exp().sum().log() - logits[(anchor + b) % (2 * b)])
    return sum(losses) / (2 * b)


def inputs(generator, b):
    views = {f"image.strong_{i}.raw": normal(generator, b, 7) for i in (1, 2)}
    return views | {"logit_scale": torch.tensor([9.0], dtype=torch.float64)}, {}


def small_head(**choices):
    return SimCLR(nn.Sequential(nn.Linear(7, 6), nn.LayerNorm(6), nn.Linear(6, 5)), **choices)


CASES = {
    "as_they_are": Case(SimCLR, formula, inputs),
    "head": Case(small_head, formula, inputs),
}
