"""A term over some of the samples; of one rank, none."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.distillation.soft_contrastive import SoftContrastive
from counterpoint.losses.wrappers.masked import Masked

HAS_TEACHER = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0, 0], dtype=torch.bool)
NAMES = ("teacher.image", "teacher.text")


def inputs(generator, b):
    features, batch = pairs(generator, b)
    for name in NAMES:
        # What stands in for a missing row must not matter.
        stored = unit(generator, b, 5)
        batch[name] = torch.where(HAS_TEACHER[:b, None], stored, torch.nan)
    return features, batch | {"teacher.present": HAS_TEACHER[:b]}


def formula(features, batch, term):
    kept = torch.nonzero(HAS_TEACHER)[:, 0]
    logits = features["logit_scale"] * features["image"][kept] @ features["text"][kept].T
    theirs = 8.0 * batch[NAMES[0]][kept] @ batch[NAMES[1]][kept].T
    losses = [(theirs.softmax(dim) * logits.log_softmax(dim)).sum() for dim in (0, 1)]
    return -(losses[0] + losses[1]) / (2 * len(kept))


def make(**choices):
    return Masked(SoftContrastive(["teacher"], [8.0], **choices), "teacher.present")


CASES = {"stored_teacher": Case(make, formula, inputs, is_mean=False)}
