"""A term of its own behind heads."""

from term_case import Case, normal
from torch.nn import functional as F

from counterpoint.losses.components.heads import MLP
from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.scalars import Temperature
from counterpoint.losses.wrappers.projected import Projected

NAMES = ("teacher.large.image", "teacher.large.text")


def inputs(generator, b):
    features = {name: normal(generator, b, 7) for name in ("image.raw", "text.raw")}
    return features | {name: F.normalize(normal(generator, b, 5), dim=1) for name in NAMES}, {}


def make():
    term = SoftContrastive(["teacher.large"], [8.0], scale=Temperature(9.0))
    return Projected(term, MLP([7, 6, 5], norm=None), MLP([7, 5]))


def formula(features, batch, term):
    first, last = term.image_head[0], term.image_head[2]
    hidden = (features["image.raw"] @ first.weight.T + first.bias).clamp(min=0)
    u = hidden @ last.weight.T + last.bias
    v = features["text.raw"] @ term.text_head[0].weight.T + term.text_head[0].bias
    u, v = (x / x.pow(2).sum(1, keepdim=True).sqrt() for x in (u, v))
    logits, theirs = term.term.scale() * u @ v.T, 8.0 * features[NAMES[0]] @ features[NAMES[1]].T
    losses = [(theirs.softmax(dim) * logits.log_softmax(dim)).sum() for dim in (0, 1)]
    return -(losses[0] + losses[1]) / (2 * len(u))


CASES = {
    "soft_contrastive": Case(
        make, formula, inputs, takes_exchange=False, constants=frozenset(NAMES)
    )
}
