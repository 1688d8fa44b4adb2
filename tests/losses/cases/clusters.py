"""Cluster discrimination, with margins and without."""

import torch
from term_case import Case, unit

from counterpoint.losses.clusters import ArcMargin, ClusterDiscrimination, CosMargin
from counterpoint.losses.scalars import Temperature

CLUSTER = torch.tensor([3, 0, -1, 5, 3, 5, 1, -1, 0])


def inputs(generator, b):
    return {"image": unit(generator, b, 7)}, {"clusters.id": CLUSTER[:b]}


def formula(features, batch, term):
    total, members = torch.tensor(0.0), [(i, y) for i, y in enumerate(CLUSTER.tolist()) if y >= 0]
    prototypes = term.prototypes / term.prototypes.pow(2).sum(1, keepdim=True).sqrt()
    for i, y in members:
        cosines = prototypes @ features["image"][i]
        if isinstance(term.margin, ArcMargin):
            own = (cosines[y].acos() + 0.5).cos()
        else:
            own = cosines[y] - term.margin.margin
        logits = torch.stack([own if c == y else cosines[c] for c in range(6)])
        total = total - (term.scale() * logits).log_softmax(0)[y]
    return total / len(members)


def case(**choices):
    return Case(
        lambda: ClusterDiscrimination(6, 7, tile_bytes=96, **choices),
        formula,
        inputs,
        takes_exchange=False,
    )


CASES = {
    "plain": case(scale=Temperature(8.0)),
    "cos_margin": case(scale=Temperature(8.0), margin=CosMargin()),
    "arc_margin": case(scale=Temperature(8.0), margin=ArcMargin()),
}
