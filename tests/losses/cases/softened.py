"""Softened targets."""

import torch
from term_case import Case, pairs

from counterpoint.losses.lightclip import ByNeighbours, Softened
from counterpoint.losses.weight_schedules import Ramp

AMOUNT = {"even": 0.2, "progressive": 0.075, "by_neighbours": 0.4}


def formula_of(name):
    def formula(features, batch, term):
        u, v = features["image"], features["text"]
        p = (features["logit_scale"] * u @ v.T).log_softmax(1)
        p2 = (features["logit_scale"] * u @ v.T).log_softmax(0)
        r = r2 = torch.full_like(p, 1 / len(u)).detach()
        if name == "by_neighbours":
            r, r2 = (4.0 * u @ u.T).softmax(1).detach(), (4.0 * v @ v.T).softmax(0).detach()
        own, amount = torch.eye(len(u), dtype=u.dtype), AMOUNT[name]
        rows = ((1 - amount) * own + amount * r) * p
        columns = ((1 - amount) * own + amount * r2) * p2
        return -(rows.sum() + columns.sum()) / (2 * len(u))

    return formula


def midway(generator, b):
    features, batch = pairs(generator, b)
    return features | {"progress": torch.tensor([0.5], dtype=torch.float64)}, batch


def progressive(**choices):
    return Softened(Ramp(0.0, 0.1, start=0.2, stop=0.6), **choices)


def by_neighbours(**choices):
    return Softened(0.4, ByNeighbours(4.0), **choices)


constants = frozenset({"progress"})
CASES = {
    "even": Case(lambda **choices: Softened(0.2, **choices), formula_of("even")),
    "progressive": Case(progressive, formula_of("progressive"), midway, constants=constants),
    "by_neighbours": Case(by_neighbours, formula_of("by_neighbours")),
}
