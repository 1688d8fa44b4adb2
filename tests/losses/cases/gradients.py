"""Distance between the gradients of the student's InfoNCE and of the teacher's, by autograd."""

import torch
from term_case import Case, pairs, unit
from torch.nn import functional as F

from counterpoint.losses.components.heads import UnitMLP
from counterpoint.losses.distillation.gradient_matching import GradientMatching

TEACHER = "teacher.large"
NAMES = (f"{TEACHER}.image", f"{TEACHER}.text", f"{TEACHER}.logit_scale")


def inputs(generator, b, width=7):
    features, batch = pairs(generator, b)
    features |= {name: unit(generator, b, width) for name in NAMES[:2]}
    return features | {NAMES[2]: torch.tensor([12.0], dtype=torch.float64)}, batch


def wider(generator, b):
    return inputs(generator, b, width=11)


def gradients(u, v, scale):
    """Of both halves by both sides, for each of which autograd goes back on its own."""
    own = torch.arange(len(u))
    found = []
    for rows, columns in ((u, v), (v, u)):
        half = F.cross_entropy(scale * rows @ columns.T, own, reduction="sum")
        found += torch.autograd.grad(half, [rows, columns], create_graph=True)
    return found


def projected(head, x):
    rows = x @ head[0].weight.T + head[0].bias if isinstance(head, UnitMLP) else x + 0
    return rows / rows.pow(2).sum(1, keepdim=True).sqrt() if rows.shape != x.shape else rows


def formula(features, batch, term):
    u = projected(term.image_head, features["image"])
    v = projected(term.text_head, features["text"])
    their_u, their_v = (features[name].clone().requires_grad_() for name in NAMES[:2])
    scale = features[NAMES[2]] if term.teacher_scale is None else term.teacher_scale
    wanted = gradients(their_u, their_v, scale)
    found = gradients(u, v, features["logit_scale"])
    gaps = [F.mse_loss(g, t.detach()) for g, t in zip(found, wanted, strict=True)]
    return torch.stack(gaps).sum()


def case(inputs, *arguments, **heads):
    return Case(
        lambda **choices: GradientMatching(
            TEACHER, *arguments, **{k: make() for k, make in heads.items()}, **choices
        ),
        formula,
        inputs,
        constants=frozenset(NAMES),
    )


def head():
    return UnitMLP([7, 11])


CASES = {
    "same_width": case(inputs),
    "heads": case(wider, 20.0, image_head=head, text_head=head),
}
