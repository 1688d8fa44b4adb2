"""Pairwise sigmoid loss."""

import torch
from term_case import Case, pairs

from counterpoint.losses.siglip import SigLIP


def formula(features, batch, term):
    u, v = features["image"], features["text"]
    logits = features["logit_scale"] * u @ v.T + features["logit_bias"]
    signs = 2 * torch.eye(len(u), dtype=u.dtype) - 1
    return -torch.log(torch.sigmoid(signs * logits)).sum() / len(u)


def inputs(generator, b):
    features, batch = pairs(generator, b)
    return features | {"logit_bias": torch.tensor([-4.0], dtype=torch.float64)}, batch


CASES = {"sigmoid": Case(SigLIP, formula, inputs)}
