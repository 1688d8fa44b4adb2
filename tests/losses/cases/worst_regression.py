"""The worst of several versions of a feature, drawn to its target."""

import torch
from term_case import Case, normal

from counterpoint.losses.distillation.feature_regression import cosine
from counterpoint.losses.distillation.worst_regression import WorstRegression

NAMES = ("text.attack_1.raw", "text.attack_2.raw", "text.attack_3.raw")
TARGET = "teacher.original.text.raw"


def formula(features, batch, term):
    """Row by row, version by version."""
    y, weights = features[TARGET], batch.get("weight")
    losses = []
    for i in range(len(y)):
        worst = None
        for name in term.features:
            x = features[name][i]
            distance = ((x - y[i]) ** 2).sum()
            if term.distance is cosine:
                distance = 1 - (x * y[i]).sum() / ((x * x).sum() * (y[i] * y[i]).sum()).sqrt()
            worst = distance if worst is None or distance > worst else worst
        losses.append(worst)
    losses = torch.stack(losses)
    return losses.mean() if weights is None else (weights * losses).sum() / weights.sum()


def inputs(generator, b):
    return {name: normal(generator, b, 5) for name in (*NAMES, TARGET)}, {}


def weighted(generator, b):
    features, _ = inputs(generator, b)
    return features, {"weight": torch.rand(b, generator=generator, dtype=torch.float64)}


def case(names, inputs, *more):
    made = lambda: WorstRegression(names, TARGET, *more)  # noqa: E731
    return Case(made, formula, inputs, takes_exchange=False, constants=frozenset([TARGET]))


CASES = {
    "three": case(NAMES, inputs),
    "one": case(NAMES[:1], lambda g, b: ({n: normal(g, b, 5) for n in (NAMES[0], TARGET)}, {})),
    "cosine": case(NAMES, inputs, cosine),
    "weighted": case(NAMES, weighted),
}
