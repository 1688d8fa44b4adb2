"""Sigmoid loss with soft targets."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.distillation.soft_siglip import SoftSigLIP

TEACHERS = ("teacher.large", "teacher.wide")


def inputs(generator, b):
    features, batch = pairs(generator, b)
    numbers = {"logit_bias": -3.0}
    for teacher, width, scale in zip(TEACHERS, (7, 11), (5.0, 12.0), strict=True):
        for side in ("image", "text"):
            features[f"{teacher}.{side}"] = unit(generator, b, width)
        numbers |= {f"{teacher}.logit_scale": scale, f"{teacher}.logit_bias": -scale / 4}
    return features | {k: torch.tensor([x], dtype=torch.float64) for k, x in numbers.items()}, batch


def formula(features, batch, term):
    z = features["logit_scale"] * features["image"] @ features["text"].T + features["logit_bias"]
    t = torch.zeros_like(z)
    for number, teacher in enumerate(term.teachers):
        scales, biases = term.teacher_scales, term.teacher_biases
        scale = scales[number] if scales else features[f"{teacher}.logit_scale"]
        bias = biases[number] if biases else features[f"{teacher}.logit_bias"]
        theirs = scale * features[f"{teacher}.image"] @ features[f"{teacher}.text"].T + bias
        t = t + 1 / (1 + (-theirs).exp()) / len(term.teachers)
    p = 1 / (1 + (-z).exp())
    return -(t * p.log() + (1 - t) * (1 - p).log()).sum() / len(z)


CONSTANTS = frozenset(
    f"{t}.{n}" for t in TEACHERS for n in ("image", "text", "logit_scale", "logit_bias")
)


def case(*arguments):
    make = lambda **choices: SoftSigLIP(*arguments, **choices)  # noqa: E731
    return Case(make, formula, inputs, constants=CONSTANTS)


CASES = {
    "own_numbers": case(TEACHERS[1:]),
    "two_teachers": case(TEACHERS, (10.0, 3.0), (-2.0, -1.0)),
}
