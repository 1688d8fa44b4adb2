"""Short captions against images rebuilt from principal components (Long-CLIP)."""

import torch
from term_case import Case, pairs, unit
from torch.nn import functional as F

from counterpoint.losses.primary_components import PrimaryComponents


def inputs(generator, b):
    features, batch = pairs(generator, b)
    return features | {"text.short": unit(generator, b, 7)}, batch


def formula(features, batch, term):
    image, text = features["image"], features["text.short"]
    mean = image.mean(0)
    # The released code's decomposition; ours is of the covariance.
    directions = torch.linalg.svd(image - mean, full_matrices=False).Vh[: term.num_components]
    rebuilt = mean + (image - mean) @ directions.T @ directions
    logits = features["logit_scale"] * rebuilt @ text.T
    labels = torch.arange(len(image))
    both = [F.cross_entropy(x, labels, label_smoothing=term.smoothing) for x in (logits, logits.T)]
    return sum(both) / 2


def case(num_components, smoothing):
    def make(**choices):
        return PrimaryComponents(num_components, smoothing, **choices)

    # The components are those of the batch, whatever columns are compared: `Local` is no mean.
    return Case(make, formula, inputs, is_mean=False)


CASES = {"three": case(3, 0.1), "one": case(1, 0.3)}
