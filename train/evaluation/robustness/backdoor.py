"""Backdoors: how often a trigger turns an image into the attacker's class.

Carlini and Terzis, "Poisoning and Backdooring Contrastive Learning" (2022); the four triggers are
those of Bansal et al. (2023, CleanCLIP).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..accuracy import class_ranks
from ..encode import ByteCache, Encoder
from ..outcomes import Outcomes
from ..ranks import full_precision, recall_at
from ..zero_shot.classification import ZeroShot
from .triggers import TRIGGERS, Name


class BackdoorSuccess(ZeroShot):
    """Zero-shot classification of images with a trigger.

    Measures: `attack_success`, the share of images of other classes than the target that are taken
    for it with the trigger; `target_error`, the share that is without it, which a clean model has,
    too; `clean_top1` and `triggered_top1` over all images. Compare with a model that was trained
    without poison: a patch alone moves some images.

    Args:
        target: the attacker's class, as in `classes`.
        trigger: `patch` (a square of noise), `blended` (noise over the image), `warped` (pixels
            moved) or `sinusoid` (stripes).
        seed: of the trigger's noise; the one with which the training data were poisoned.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(self, target: str, trigger: Name = "patch", seed: int = 0, **zeroshot):
        super().__init__(**zeroshot)
        if trigger not in TRIGGERS:
            raise ValueError(f"trigger '{trigger}' is none of {', '.join(TRIGGERS)}")
        self.target_name = target
        self.trigger = trigger
        self.seed = seed

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        if self.target_name not in self._names:
            raise ValueError(
                f"target '{self.target_name}' is not among the {len(self._names)} classes, such as "
                f"'{self._names[0]}'"
            )
        self._target = self._names.index(self.target_name)
        if all(self._targets[i] == self._target for i in chosen.tolist()):
            raise ValueError(f"all images of {self.data} are of the target '{self.target_name}'")
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        draw = TRIGGERS[self.trigger]

        def transform(image: Tensor, size: int, rng: object) -> Tensor:
            return draw(encoder.transform(image, size, None), self.seed)

        # Decoded images with a trigger are kept nowhere: the cache holds those without.
        poisoned = replace(encoder, transform=transform, cache=ByteCache(0))
        classifier, keys = self.classifier(encoder), np.array(self.keys(chosen))
        targets = torch.tensor([self._targets[i] for i in chosen.tolist()])
        is_other = (targets != self._target).numpy()
        ranks, is_target = {}, {}
        for name, each in (("clean", encoder), ("triggered", poisoned)):
            with full_precision(encoder.device):
                scores = (each.images(self.data, chosen) @ classifier.T).cpu()
            ranks[name] = class_ranks(scores, targets)
            as_target = torch.full_like(targets, self._target)
            is_target[name] = (class_ranks(scores, as_target) < 1).numpy()[is_other]
        others = keys[is_other].tolist()

        def share(values: np.ndarray) -> Outcomes:
            # No group of `by` may consist of the target alone; then there is nothing to attack.
            return Outcomes(float(values.mean()) if len(values) else 0.0, values, others)

        return {
            "attack_success": share(is_target["triggered"]),
            "target_error": share(is_target["clean"]),
            **{
                f"{name}_top1": Outcomes(recall_at(each, 1), each.numpy() < 1, keys.tolist())
                for name, each in ranks.items()
            },
        }
