"""Hard negatives: further columns for the images, pairs of negatives; some samples lack them."""

import torch
from term_case import Case, pairs, unit

from counterpoint.losses.negclip import NegCLIP, TripletCLIP


def inputs(generator, b):
    features, _ = pairs(generator, b)
    for name in ("image.negative", "text.negative", "text.other"):
        features[name] = unit(generator, b, 7)
    batch = {
        "text.negative.present": torch.tensor([i % 4 != 1 for i in range(b)]),
        "image.negative.present": torch.tensor([i % 5 != 2 for i in range(b)]),
        # Where ranks have few rows, some of them have no such text at all.
        "text.other.present": torch.tensor([i > 4 for i in range(b)]),
    }
    return features, batch


def part(u, v, further, scale):
    """Sum over pairs of N, with any rows as further columns."""
    total = 0.0
    for i in range(len(u)):
        row = [torch.exp(scale * (u[i] @ c)) for c in (*v, *further)]
        column = [torch.exp(scale * (v[i] @ r)) for r in u]
        positive = torch.exp(scale * (u[i] @ v[i]))
        total = total - torch.log(positive / sum(row)) - torch.log(positive / sum(column))
    return total / 2


def negclip(features, batch, term):
    kept = [features[name][batch[f"{name}.present"]] for name in term.negatives]
    scale = features["logit_scale"]
    return part(features["image"], features["text"], torch.cat(kept), scale) / len(
        features["image"]
    )


def tripletclip(features, batch, term):
    u, v, scale = features["image"], features["text"], features["logit_scale"]
    has_text = batch["text.negative.present"]
    both = has_text & batch["image.negative.present"]
    negative = features["text.negative"]
    value = part(u, v, negative[has_text], scale)
    return (value + part(features["image.negative"][both], negative[both], v, scale)) / len(u)


def several(**choices):
    return NegCLIP(["text.negative", "text.other"], **choices)


def triplets(**choices):
    return NegCLIP(["text.other"], views=("text", "text.negative"), **choices)


def by_views(features, batch, term):
    u, v, negative = (features[name] for name in ("text", "text.negative", "text.other"))
    kept = negative[batch["text.other.present"]]
    return part(u, v, kept, features["logit_scale"]) / len(u)


CASES = {
    "negclip_triplets": Case(triplets, by_views, inputs),
    "negclip": Case(NegCLIP, negclip, inputs),
    "negclip_several": Case(several, negclip, inputs),
    "tripletclip": Case(TripletCLIP, tripletclip, inputs),
}
