"""A term on several views of the pairs: the mean of its formula over them."""

import torch
from term_case import Case, normal, unit

from counterpoint.losses.components.similarity import SquaredDistance
from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.siglip import SigLIP
from counterpoint.losses.wrappers.views import OverViews

CROPS = [("image", "text"), ("image.other", "text")]
PAIRS = [("image.other", "text"), ("image", "text.other")]


def inputs(generator, b):
    names = ("image", "image.other", "text", "text.other")
    features = {name: unit(generator, b, 7) for name in names}
    features |= {f"{name}.raw": normal(generator, b, 7) for name in names}
    scalars = {"logit_scale": 9.0, "logit_bias": -4.0}
    return features | {n: torch.tensor([v]).double() for n, v in scalars.items()}, {}


def infonce(features, batch, term):
    total = 0.0
    for image, text in CROPS:
        logits = features["logit_scale"] * features[image] @ features[text].T
        log_p = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
        total = total - log_p.mean() / 2
    return total / 2


def distances(features, batch, term):
    total = 0.0
    for image, text in PAIRS:
        x, y = features[f"{image}.raw"], features[f"{text}.raw"]
        logits = -features["logit_scale"] * (x[:, None] - y).square().sum(2) / 7
        log_p = logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()
        total = total - log_p.mean() / 2
    return total / 2


def siglip(features, batch, term):
    total = 0.0
    for image, text in PAIRS:
        logits = features["logit_scale"] * features[image] @ features[text].T
        sign = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
        losses = -(sign * (logits + features["logit_bias"])).sigmoid().log()
        total = total + losses.sum() / len(logits)
    return total / 2


CASES = {
    "infonce": Case(lambda **choices: OverViews(InfoNCE(**choices), CROPS), infonce, inputs),
    "distances": Case(
        lambda **choices: OverViews(InfoNCE(SquaredDistance(), **choices), PAIRS),
        distances,
        inputs,
    ),
    "siglip": Case(lambda **choices: OverViews(SigLIP(**choices), PAIRS), siglip, inputs),
}
