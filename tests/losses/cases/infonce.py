"""Softmax contrastive loss."""

from term_case import Case

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.scalars import Temperature


def formula(features, batch, term):
    u, v = features["image"], features["text"]
    scale = features["logit_scale"] if isinstance(term.scale, str) else term.scale()
    logits = scale * u @ v.T
    rows = sum(torch_lse(logits[i]) - logits[i, i] for i in range(len(u)))
    columns = sum(torch_lse(logits[:, j]) - logits[j, j] for j in range(len(u)))
    return (rows + columns) / (2 * len(u))


def torch_lse(x):
    return (x - x.max()).exp().sum().log() + x.max()


CASES = {
    "shared_scale": Case(InfoNCE, formula),
    "own_scale": Case(lambda **choices: InfoNCE(scale=Temperature(20.0), **choices), formula),
}
