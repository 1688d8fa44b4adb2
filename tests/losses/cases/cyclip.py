"""Geometric consistency."""

from term_case import Case

from counterpoint.losses.cyclip import CrossModalConsistency, InModalConsistency


def squared(u, differences):
    return differences.square().sum() / len(u)


def cross_modal(features, batch, term):
    u, v = features["image"], features["text"]
    return squared(u, u @ v.T - (u @ v.T).T)


def in_modal(features, batch, term):
    u, v = features["image"], features["text"]
    return squared(u, u @ u.T - v @ v.T)


CASES = {
    "cross_modal": Case(CrossModalConsistency, cross_modal, takes_exchange=False),
    "in_modal": Case(InModalConsistency, in_modal, takes_exchange=False),
}
