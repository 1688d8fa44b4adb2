"""Regression of one feature on another."""

import functools

import torch
from term_case import Case, normal

from counterpoint.losses.components.heads import MLP, UnitMLP
from counterpoint.losses.distillation.feature_regression import (
    FeatureRegression,
    cosine,
    smooth_l1,
    squared,
)

TARGET = "teacher.big.image"
HAS_TARGET = torch.tensor([1, 0, 1, 1, 0, 1, 0, 0, 0], dtype=torch.bool)


def distances(term, x, y):
    """By the definition, row by row."""
    if term.distance is squared:
        return (x - y).pow(2).sum(1) / x.shape[1]
    if term.distance is smooth_l1:
        gap = (x - y).abs()
        return torch.where(gap < 1, gap * gap / 2, gap - 0.5).sum(1) / x.shape[1]
    return 1 - (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1)).sqrt()


def formula(features, batch, term):
    x, y = features["image"], features[TARGET]
    if not isinstance(term.head, torch.nn.Identity):
        x = x @ term.head[0].weight.T + term.head[0].bias
    if isinstance(term.head, UnitMLP):
        x = x / x.pow(2).sum(1, keepdim=True).sqrt()
    kept = range(len(x)) if term.valid is None else torch.nonzero(batch["present"])[:, 0].tolist()
    losses = distances(term, x, y)
    return sum((losses[i] for i in kept), x.sum() * 0) / max(1, len(kept))


def inputs(generator, b, width=5):
    return {"image": 2 * normal(generator, b, width), TARGET: 2 * normal(generator, b, 5)}, {}


def some_valid(generator, b):
    return inputs(generator, b)[0], {"present": HAS_TARGET[:b]}


def none_valid(generator, b):
    return inputs(generator, b)[0], {"present": torch.zeros(b, dtype=torch.bool)}


def case(inputs, make=FeatureRegression, **choices):
    constants = frozenset([TARGET])
    made = functools.partial(make, "image", TARGET, **choices)
    return Case(made, formula, inputs, takes_exchange=False, constants=constants)


def wider(generator, b):
    return inputs(generator, b, width=3)


STATES, THEIRS = "image.tokens", "teacher.big.image.tokens"


def map_inputs(generator, b):
    """States of four patches, of some samples' teachers."""
    features = {STATES: 2 * normal(generator, b, 4, 3), THEIRS: 2 * normal(generator, b, 4, 5)}
    features[THEIRS][~HAS_TARGET[:b]] = torch.nan  # whatever stands there
    return features, {"present": HAS_TARGET[:b]}


def by_patch(features, batch, term):
    """The mean over the patches of what the term is for one."""
    total = features[STATES].sum() * 0
    kept = batch["present"].nonzero()[:, 0].tolist()
    for patch in range(4):
        x = features[STATES][kept, patch] @ term.head[0].weight.T + term.head[0].bias
        total = total + distances(term, x, features[THEIRS][kept, patch]).sum() / 4
    return total / max(1, len(kept))


def map_case(distance):
    def make():
        return FeatureRegression(STATES, THEIRS, distance, MLP([3, 5]), valid="present")

    constants = frozenset([THEIRS])
    return Case(make, by_patch, map_inputs, takes_exchange=False, constants=constants)


CASES = {
    "map": map_case(smooth_l1),
    "map_cosine": map_case(cosine),
    "cosine": case(inputs),
    "squared": case(some_valid, distance=squared, valid="present"),
    "smooth_l1": case(inputs, distance=smooth_l1),
    "none_valid": case(none_valid, valid="present"),
    "head": case(wider, lambda *names: FeatureRegression(*names, head=MLP([3, 5]))),
    "unit_head": case(wider, lambda *names: FeatureRegression(*names, squared, UnitMLP([3, 5]))),
}
