"""Leave-one-out losses, with and without retrieval."""

import torch
from term_case import Case

from counterpoint.losses.cloob import CLOOB, InfoLOOB
from counterpoint.losses.scalars import Temperature


def scale_of(features, term):
    return features[term.scale] if isinstance(term.scale, str) else term.scale()


def one_way(anchors, positives, scale, others_only):
    """tau mean_i [ -A_i.P_i / tau + log sum_j exp(A_i.P_j / tau) ], tau = 1 / scale."""
    n, tau, total = len(anchors), 1 / scale, 0.0
    for i in range(n):
        others = [j for j in range(n) if j != i or not others_only]
        logits = positives @ anchors[i] / tau
        total = total - logits[i] + logits[others].exp().sum().log()
    return (tau * total / n).squeeze()


def infoloob(features, batch, term):
    u, v, scale = features["image"], features["text"], scale_of(features, term)
    return one_way(u, v, scale, True) + one_way(v, u, scale, True)


def cloob(features, batch, term):
    u, v, scale = features["image"], features["text"], scale_of(features, term)

    def recalled(states, store):
        found = torch.softmax(term.beta() * states @ store.T, 1) @ store
        return found / found.square().sum(1, keepdim=True).sqrt()

    alone = term.pairs == "others"
    of_images = one_way(recalled(u, u), recalled(v, u), scale, alone)
    return of_images + one_way(recalled(v, v), recalled(u, v), scale, alone)


# A rank with one pair of its own has nothing to compare it with.
CASES = {
    "infoloob": Case(InfoLOOB, infoloob, min_rows=2),
    "infoloob_model_scale": Case(
        lambda **choices: InfoLOOB(scale="logit_scale", **choices), infoloob, min_rows=2
    ),
    "cloob": Case(CLOOB, cloob, min_rows=2),
    # The gradient of the scale is a difference: of the mean logit and of log sum exp / scale.
    "cloob_learned": Case(
        lambda **choices: CLOOB(beta=Temperature(5.0), scale=Temperature(20.0), **choices),
        cloob,
        min_rows=2,
    ),
    "hopfield": Case(lambda **choices: CLOOB("all", **choices), cloob),
}
