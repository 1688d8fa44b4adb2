"""Zero-shot classification by prompts that name an attribute, which is inferred from the image.

An et al., "PerceptionCLIP: Visual Classification by Inferring and Conditioning on Contexts" (2024),
section 5: of logits f(y, z; x) of class y with attribute value z,

    P(z | x) = sum_y exp(f / t) / sum_yz exp(f / t),    P(y | x) = sum_z P(y | x, z) P(z | x).

With t below 1 the likeliest attribute decides alone; as t grows, all count alike.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ..accuracy import accuracies, class_ranks
from ..encode import Encoder
from ..outcomes import Outcomes
from .classification import ZeroShot

# Logits held at a time (256 MiB of float64).
CHUNK_LOGITS = 1 << 25


class AttributePrompts(ZeroShot):
    """Accuracy with prompts conditioned on an attribute of the image.

    Measures and further arguments are those of `ZeroShot`; each template holds `{a}`, too.

    Args:
        attributes: what may stand for `{a}`: a list of phrases (", in the snow", ", at night", "").
        temperature: t above, of the inference of the attribute.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, attributes: list[str], temperature: float = 1.0, **zeroshot):
        super().__init__(**zeroshot)
        if len(attributes) < 2 or temperature <= 0:
            raise ValueError(
                f"attributes are {attributes} and temperature is {temperature}; give at least two "
                "phrases, and a temperature above 0"
            )
        self.attributes = attributes
        self.temperature = temperature

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        prompts = [prompt for of_class in self._prompts for prompt in of_class]
        if wrong := [prompt for prompt in prompts if "{a}" not in prompt]:
            raise ValueError(f"templates need {{a}} where the attribute goes, not '{wrong[0]}'")
        # A class with an attribute is a class of its own: class 0 with each attribute, class 1 ...
        self._prompts = [
            [prompt.replace("{a}", phrase) for prompt in of_class]
            for of_class in self._prompts
            for phrase in self.attributes
        ]
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        image, pairs = encoder.images(self.data, chosen), self.classifier(encoder)
        rows = max(1, CHUNK_LOGITS // len(pairs))
        parts = []
        for start in range(0, len(image), rows):
            logits = encoder.logits(image[start : start + rows], pairs)
            logits = logits.unflatten(1, (-1, len(self.attributes)))
            parts.append(class_log_probabilities(logits, self.temperature))
        targets = [self._targets[i] for i in chosen.tolist()]
        scores = torch.cat(parts)
        found = class_ranks(scores, torch.tensor(targets, device=scores.device))
        return accuracies(found, targets, self.keys(chosen), len(self._names))


def class_log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Returns log P(class | image) [n, classes] of logits [n, classes, attributes]."""
    logits = logits if logits.device.type == "mps" else logits.double()
    of_attribute = (logits / temperature).logsumexp(1).log_softmax(1)
    given_attribute = logits.log_softmax(1)
    return (given_attribute + of_attribute[:, None]).logsumexp(2)
