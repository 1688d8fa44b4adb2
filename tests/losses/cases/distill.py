"""Soft contrastive cross-entropy with one teacher or several of other widths."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.scalars import Fixed

TEACHERS = ("teacher.large", "teacher.wide")


def inputs(generator, b):
    features, batch = pairs(generator, b)
    for teacher, width, scale in zip(TEACHERS, (7, 11), (5.0, 12.0), strict=True):
        features[f"{teacher}.image"] = unit(generator, b, width)
        features[f"{teacher}.text"] = unit(generator, b, width)
        features[f"{teacher}.logit_scale"] = torch.tensor([scale], dtype=torch.float64)
    return features, batch


def formula(features, batch, term):
    logits = features["logit_scale"] * features["image"] @ features["text"].T
    total = 0.0
    for number, teacher in enumerate(term.teachers):
        scales = term.teacher_scales
        scale = scales[number] if scales else features[f"{teacher}.logit_scale"]
        theirs = scale * features[f"{teacher}.image"] @ features[f"{teacher}.text"].T
        for dim in (0, 1):
            total = total - (theirs.softmax(dim) * logits.log_softmax(dim)).sum()
    own = -(logits.log_softmax(0).trace() + logits.log_softmax(1).trace())
    soft = total / len(term.teachers)
    return (term.diagonal * own + (1 - term.diagonal) * soft) / (2 * len(logits))


def affinity_mimicking(features, batch, term):
    """TinyCLIP's: the mean of both cross-entropies, each over rows against all columns."""
    logits = 50 * features["image"] @ features["text"].T
    theirs = 50 * features[f"{TEACHERS[1]}.image"] @ features[f"{TEACHERS[1]}.text"].T
    halves = [
        torch.nn.functional.cross_entropy(mine, soft.softmax(1))
        for mine, soft in ((logits, theirs), (logits.T, theirs.T))
    ]
    return (halves[0] + halves[1]) / 2


CONSTANTS = frozenset(f"{t}.{n}" for t in TEACHERS for n in ("image", "text", "logit_scale"))


def case(*arguments, formula=formula, **settings):
    return Case(
        lambda **choices: SoftContrastive(*arguments, **settings, **choices),
        formula,
        inputs,
        constants=CONSTANTS,
    )


CASES = {
    "one_teacher": case(TEACHERS[:1]),
    "two_teachers_with_scales": case(TEACHERS, (20.0, 3.0)),
    "mixed_with_the_own_pair": case(TEACHERS[1:], None, 0.3),
    "affinity_mimicking": case(
        TEACHERS[1:], (50.0,), formula=affinity_mimicking, scale=Fixed(50.0)
    ),
}
