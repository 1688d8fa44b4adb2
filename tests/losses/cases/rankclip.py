"""Ranking consistency."""

import torch
from term_case import Case

from counterpoint.losses.rankclip import CrossModalRanking, InModalRanking


def list_mle(predicted, truth):
    """-sum_k log( exp p_pi(k) / sum_{m >= k} exp p_pi(m) ) of each row, a mean over rows and k."""
    n, total = len(predicted), 0.0
    for row, order in zip(predicted, (-truth.detach()).argsort(1), strict=True):
        powers = row[order].exp()
        rest = torch.stack([powers[k:].sum() for k in range(n)])
        total = total - (powers / rest).log().sum()
    return total / n**2


def consistency(one, other):
    return list_mle(one, other) + list_mle(other, one)


def cross_modal(features, batch, term):
    u, v, s = features["image"], features["text"], features["logit_scale"]
    return consistency(s * u @ v.T, s * v @ u.T)


def in_modal(features, batch, term):
    u, v, s = features["image"], features["text"], features["logit_scale"]
    return consistency(s * u @ u.T, s * v @ v.T)


CASES = {
    "cross_modal": Case(CrossModalRanking, cross_modal),
    # A row's own column is the most likely by far: 1 - p loses digits, at s = 9 and two columns.
    "in_modal": Case(InModalRanking, in_modal),
}
