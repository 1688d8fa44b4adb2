"""The reward for similar pairs."""

from term_case import Case

from counterpoint.losses.positive_cosine import PositiveCosine


def formula(features, batch, term):
    u, v = features["image"], features["text"]
    return -sum(u[i] @ v[i] for i in range(len(u))) / len(u)


CASES = {"margin": Case(PositiveCosine, formula, takes_exchange=False)}
