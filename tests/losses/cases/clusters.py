"""Cluster discrimination, with margins and without, prototypes whole and cut over ranks."""

import torch
from term_case import Case, unit

from counterpoint.losses.distillation.cluster_discrimination import (
    ArcMargin,
    ClusterDiscrimination,
    CosMargin,
)
from counterpoint.losses.distillation.sharded_clusters import ShardedClusters
from counterpoint.losses.scalars import Temperature

CLUSTER = torch.tensor([3, 0, -1, 5, 3, 5, 1, -1, 0])


def inputs(generator, b):
    return {"image": unit(generator, b, 7)}, {"clusters.id": CLUSTER[:b]}


def formula(features, batch, term):
    total, members = torch.tensor(0.0), [(i, y) for i, y in enumerate(CLUSTER.tolist()) if y >= 0]
    term.steps += 1
    compared = term._compared().tolist()
    assert len(compared) == term.num_compared
    prototypes = term.prototypes / term.prototypes.pow(2).sum(1, keepdim=True).sqrt()
    for i, y in members:
        cosines = prototypes @ features["image"][i]
        if isinstance(term.margin, ArcMargin):
            own = (cosines[y].acos() + 0.5).cos()
        else:
            own = cosines[y] - term.margin.margin
        logits = torch.stack([own, *(cosines[c] for c in compared if c != y)])
        total = total - (term.scale() * logits).log_softmax(0)[0]
    return total / len(members)


def case(kind=ClusterDiscrimination, num_clusters=6, **choices):
    return Case(
        lambda: kind(num_clusters, 7, tile_bytes=96, **choices),
        formula,
        inputs,
        takes_exchange=False,
    )


CASES = {
    "plain": case(scale=Temperature(8.0)),
    "cos_margin": case(scale=Temperature(8.0), margin=CosMargin()),
    "arc_margin": case(scale=Temperature(8.0), margin=ArcMargin()),
    # Seven over two, three and four ranks: unequal parts; of two drawn, some ranks have none.
    "sharded": case(ShardedClusters, 7, scale=Temperature(8.0), margin=ArcMargin()),
    "sharded_part": case(ShardedClusters, 7, scale=Temperature(8.0), rate=0.3, seed=2),
}
