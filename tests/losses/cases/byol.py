"""BYOL between views, with heads."""

import torch
from term_case import Case, normal
from torch.nn import functional as F

from counterpoint.losses.components.heads import MLP
from counterpoint.losses.self_supervision.byol import BYOL

PAIRS = [
    ("image.a.raw", "ema.image.b.raw"),
    ("image.b.raw", "ema.image.a.raw"),
    ("image.a.raw", "ema.image.c.raw"),
]
NAMES = sorted({name for pair in PAIRS for name in pair})


def make(norm=True):
    norms = {} if norm else {"norm": None}
    made = BYOL(MLP([6, 7, 5], **norms), MLP([5, 4, 5], **norms), PAIRS)
    # As after some steps: the target is no longer the projector.
    with torch.no_grad():
        for parameter in made.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def head(x, module):
    """Linear, normalised over the batch where there is a weight for it, ReLU, linear."""
    weights = module.state_dict()
    grads = dict(module.named_parameters())
    if "1.weight" in weights:
        x = F.linear(x, grads["0.weight"])
        x = F.batch_norm(x, None, None, grads["1.weight"], grads["1.bias"], training=True)
        last = "3"
    else:
        x, last = F.linear(x, grads["0.weight"], grads["0.bias"]), "2"
    return F.linear(F.relu(x), grads[f"{last}.weight"], grads[f"{last}.bias"])


def formula(features, batch, term):
    value = 0.0
    for online, averaged in PAIRS:
        p = head(head(features[online], term.projector), term.predictor)
        z = head(features[averaged], term.target).detach()
        cosines = (p * z).sum(1) / (p.square().sum(1) * z.square().sum(1)).sqrt()
        value = value + (2 - 2 * cosines).sum() / len(p)
    return value / len(PAIRS)


def inputs(generator, b):
    return {name: normal(generator, b, 6) for name in NAMES}, {}


CONSTANTS = frozenset(name for name in NAMES if name.startswith("ema."))
CASES = {
    "batch_norm": Case(make, formula, inputs, takes_exchange=False, constants=CONSTANTS),
    "no_norm": Case(
        lambda: make(norm=False), formula, inputs, takes_exchange=False, constants=CONSTANTS
    ),
}
