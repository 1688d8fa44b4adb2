"""Distillation of standardised similarities, by the matrix of them."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.distillation.standardized_logits import StandardizedLogits

TEACHERS = ("teacher.large", "teacher.wide")


def inputs(generator, b):
    features, batch = pairs(generator, b)
    for teacher, width in zip(TEACHERS, (7, 11), strict=True):
        for side in ("image", "text"):
            features[f"{teacher}.{side}"] = unit(generator, b, width)
    return features, batch


def standardised(similarities, term):
    """Every column over the rows."""
    shifted = similarities - similarities.mean(0)
    variance = similarities.var(0, unbiased=False)
    return shifted / (variance + term.eps).sqrt() / term.temperature


def formula(features, batch, term):
    total, b = torch.tensor(0.0), len(features["image"])
    for rows, columns in (("image", "text"), ("text", "image")):
        mine = standardised(features[rows] @ features[columns].T, term).log_softmax(1)
        for teacher in term.teachers:
            theirs = features[f"{teacher}.{rows}"] @ features[f"{teacher}.{columns}"].T
            soft = standardised(theirs, term).softmax(1)
            total = total - (soft * mine).sum() / (2 * b * len(term.teachers))
    return total


CONSTANTS = frozenset(f"{t}.{n}" for t in TEACHERS for n in ("image", "text"))


def case(*arguments):
    make = lambda **choices: StandardizedLogits(*arguments, **choices)  # noqa: E731
    # Statistics are global: `Local` is not the mean of the ranks' formulas.
    return Case(make, formula, inputs, constants=CONSTANTS, is_mean=False)


CASES = {"one_teacher": case(TEACHERS[:1]), "two_teachers": case(TEACHERS, 2.0, 1e-3)}
