"""Self-distillation of crops and of hidden patches, with weights and without."""

import torch
from term_case import Case, normal

from counterpoint.losses.self_supervision.head import PrototypeHead
from counterpoint.losses.self_supervision.local_to_global import LocalToGlobal
from counterpoint.losses.self_supervision.masked_prediction import MaskedPrediction

WEIGHTS = torch.tensor([0.5, 1, 2, 0, 1, 3, 0.25, 1, 1], dtype=torch.float64)
STUDENT, TEACHER = 0.1, 0.04


def moved(term):
    """As after some steps: the teacher's head is another one, the centre is not zero."""
    with torch.no_grad():
        for parameter in (*term.head.parameters(), *term.target.parameters()):
            parameter.add_(0.3 * torch.randn_like(parameter))
        term.centre.add_(0.2 * torch.randn_like(term.centre))
    return term


def head():
    return PrototypeHead(5, hidden=7, bottleneck=4, prototypes=6)


def logits(module, rows):
    """Cosines of rows and prototypes, layer by layer."""
    for layer in module.layers:
        is_linear = isinstance(layer, torch.nn.Linear)
        rows = rows @ layer.weight.T + layer.bias if is_linear else rows * normal_cdf(rows)
    return unit(rows) @ unit(module.weight).T


def normal_cdf(x):
    return (1 + torch.erf(x / 2**0.5)) / 2


def unit(rows):
    return rows / rows.square().sum(1, keepdim=True).sqrt()


def cross_entropy(term, student, teacher):
    wanted = ((logits(term.target, teacher) - term.centre) / TEACHER).softmax(1).detach()
    return -(wanted * (logits(term.head, student) / STUDENT).log_softmax(1)).sum(1)


def mean(losses, batch):
    weights = batch.get("weight", torch.ones(len(losses), dtype=torch.float64))
    return (torch.stack(list(losses)) * weights).sum() / weights.sum()


def crops(features, batch, term):
    whole = features["ema.image.pooled"]
    made = [cross_entropy(term, features[name], whole) for name in ("image.a.raw", "image.b.raw")]
    return mean(sum(made) / 2, batch)


def patches(features, batch, term):
    states, hidden, targets = (features[name] for name in term.needs)
    losses = []
    for one, where, other in zip(states, hidden.tolist(), targets, strict=True):
        rows = [len(one) + place for place in where]
        losses.append(cross_entropy(term, one[rows], other[rows]).mean())
    return mean(losses, batch)


def crop_inputs(weighted):
    def inputs(generator, b):
        names = ("image.a.raw", "image.b.raw", "ema.image.pooled")
        features = {name: normal(generator, b, 5) for name in names}
        return features, {"weight": WEIGHTS[:b]} if weighted else {}

    return inputs


def patch_inputs(weighted):
    def inputs(generator, b):
        features = {
            "image.whole.tokens": normal(generator, b, 6, 5),
            # Of four patches behind a class token and a register two are hidden.
            "image.whole.hidden": torch.rand(b, 4, generator=generator).argsort(1)[:, :2] - 4,
            "ema.image.whole.tokens": normal(generator, b, 6, 5),
        }
        return features, {"weight": WEIGHTS[:b]} if weighted else {}

    return inputs


def case(make, formula, inputs, constants):
    return Case(
        lambda: moved(make()),
        formula,
        inputs,
        takes_exchange=False,
        is_mean=False,
        constants=frozenset(constants),
    )


def local():
    return LocalToGlobal(head(), ["image.a.raw", "image.b.raw"], tile_bytes=96)


def masked():
    return MaskedPrediction(head(), tile_bytes=96)


HIDDEN = ("image.whole.hidden", "ema.image.whole.tokens")
CASES = {
    "crops": case(local, crops, crop_inputs(False), ["ema.image.pooled"]),
    "crops_weighted": case(local, crops, crop_inputs(True), ["ema.image.pooled"]),
    "patches": case(masked, patches, patch_inputs(False), HIDDEN),
    "patches_weighted": case(masked, patches, patch_inputs(True), HIDDEN),
}
