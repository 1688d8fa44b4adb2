"""CLIP-Refine: random feature alignment and hybrid contrastive distillation."""

from functools import partial

import torch
from term_case import Case, normal, unit

from counterpoint.losses.distillation.clip_refine import HyCD, RaFA
from counterpoint.losses.kernels import keyed_random as noise

STUDENT = ("image.raw", "text.raw")
TEACHER = tuple(f"teacher.start.{name}" for name in STUDENT)


def inputs(generator, b):
    features = {name: normal(generator, b, 7) for name in STUDENT + TEACHER}
    return features, {"key": torch.arange(b) * 7919 - 3}


def rafa(features, batch, term):
    x, y = (features[name] for name in STUDENT)
    # That the numbers are normal is for tests/losses/kernels/test_keyed_random.py. The first step
    # is number 1.
    z = noise.normal(batch["key"], 7, term.seed, 1)
    return (((x - z) ** 2).mean() + ((y - z) ** 2).mean()).to(x.dtype)


def unit_inputs(generator, b):
    names = (name.removesuffix(".raw") for name in STUDENT + TEACHER)
    return {name: unit(generator, b, 7) for name in names}, {}


def hycd(features, batch, term, form=".raw", scale=1.0):
    x, y, their_x, their_y = (
        features[name.removesuffix(".raw") + form] for name in STUDENT + TEACHER
    )
    ours, theirs = scale * x @ y.T, scale * their_x @ their_y.T
    total = 0.0
    for logits, teacher in ((ours, theirs), (ours.T, theirs.T)):
        for i in range(len(x)):
            target = term.diagonal * torch.eye(len(x), dtype=x.dtype)[i]
            target = target + (1 - term.diagonal) * teacher[i].softmax(0)
            total = total - (target * logits[i].log_softmax(0)).sum()
    return total / (2 * len(x))


CASES = {
    "rafa": Case(RaFA, rafa, inputs, takes_exchange=False),
    "hycd": Case(
        lambda **choices: HyCD(["teacher.start"], **choices),
        hycd,
        inputs,
        constants=frozenset(TEACHER),
    ),
    "hycd_of_unit_rows": Case(
        lambda **choices: HyCD(["teacher.start"], form="", scale=20.0, **choices),
        partial(hycd, form="", scale=20.0),
        unit_inputs,
        constants=frozenset({"teacher.start.image", "teacher.start.text"}),
    ),
}
