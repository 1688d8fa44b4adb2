"""The student's embeddings against the teacher's, with and without heads."""

import torch
from term_case import Case, pairs, unit
from torch.nn import functional as F

from counterpoint.losses.components.heads import UnitMLP
from counterpoint.losses.distillation.interactive import Interactive
from counterpoint.losses.scalars import Temperature

NAMES = ("teacher.large.image", "teacher.large.text")


def inputs(generator, b, width=7):
    features, batch = pairs(generator, b)
    return features | {name: unit(generator, b, width) for name in NAMES}, batch


def wider(generator, b):
    return inputs(generator, b, width=11)


def projected(head, x):
    """W x + c, to length one, by the definition."""
    if not isinstance(head, UnitMLP):
        return x
    rows = x @ head[0].weight.T + head[0].bias
    return rows / rows.pow(2).sum(1, keepdim=True).sqrt()


def formula(features, batch, term):
    scale = term.scale() if callable(term.scale) else features[term.scale]
    u = projected(term.image_head, features["image"])
    v = projected(term.text_head, features["text"])
    their_u, their_v = (features[name] for name in NAMES)
    own = torch.arange(len(u))
    halves = [
        F.cross_entropy(scale * rows @ columns.T, own)
        for rows, columns in ((u, their_v), (v, their_u))
    ]
    return (halves[0] + halves[1]) / 2


CONSTANTS = frozenset(NAMES)
CASES = {
    "shared_scale": Case(
        lambda **choices: Interactive("teacher.large", scale="logit_scale", **choices),
        formula,
        inputs,
        constants=CONSTANTS,
    ),
    "heads": Case(
        lambda **choices: Interactive(
            "teacher.large",
            UnitMLP([7, 11]),
            UnitMLP([7, 11]),
            scale=Temperature(9.0),
            **choices,
        ),
        formula,
        wider,
        constants=CONSTANTS,
    ),
}
