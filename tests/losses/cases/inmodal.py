"""Each modality with its own augmentation."""

import torch
from term_case import Case, unit

from counterpoint.losses.cleanclip import InModal

NAMES = ("image", "image.strong_1", "text", "text.augmented")


def one_sided(anchors, augmented, scale, present):
    logits = scale * anchors @ augmented.T
    kept = [i for i in range(len(present)) if present[i]]
    rows = [logits[i, kept].exp().sum().log() - logits[i, i] for i in kept]
    return sum(rows) / max(1, len(kept))


def formula(features, batch, term):
    u, u2, v, v2 = (features[name] for name in NAMES)
    everyone = torch.ones(len(u), dtype=torch.bool)
    present = batch.get("text.augmented.present", everyone)
    scale = features["logit_scale"]
    return (one_sided(u, u2, scale, everyone) + one_sided(v, v2, scale, present)) / 2


def inputs(generator, b):
    features = {name: unit(generator, b, 7) for name in NAMES}
    return features | {"logit_scale": torch.tensor([9.0], dtype=torch.float64)}, {}


def some_texts_missing(generator, b):
    present = torch.arange(b) % 4 != 1
    return inputs(generator, b)[0], {"text.augmented.present": present}


CASES = {
    "cleanclip": Case(InModal, formula, inputs),
    # How many texts are there is counted over all ranks, so that no rank's mean is its own.
    "some_texts_missing": Case(InModal, formula, some_texts_missing, is_mean=False),
}
