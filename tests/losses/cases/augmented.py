"""InfoNCE of student and teacher side by side."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.components.heads import UnitMLP
from counterpoint.losses.distillation.augmented_features import AugmentedFeatures
from counterpoint.losses.scalars import Temperature

NAMES = ("teacher.large.image", "teacher.large.text")


def inputs(generator, b):
    features, batch = pairs(generator, b)
    return features | {name: unit(generator, b, 5) for name in NAMES}, batch


def formula(features, batch, term):
    sides = []
    for head, mine, theirs in (
        (term.image_head, features["image"], features[NAMES[0]]),
        (term.text_head, features["text"], features[NAMES[1]]),
    ):
        rows = torch.cat([mine, theirs], 1) @ head[0].weight.T + head[0].bias
        sides.append(rows / rows.pow(2).sum(1, keepdim=True).sqrt())
    logits = term.scale() * sides[0] @ sides[1].T
    own = logits.log_softmax(1).trace() + logits.log_softmax(0).trace()
    return -own / (2 * len(logits))


CASES = {
    "two_widths": Case(
        lambda **choices: AugmentedFeatures(
            "teacher.large",
            UnitMLP([12, 7]),
            UnitMLP([12, 7]),
            scale=Temperature(9.0),
            **choices,
        ),
        formula,
        inputs,
        constants=frozenset(NAMES),
    )
}
