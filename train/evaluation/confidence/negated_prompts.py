"""Zero-shot detection of images of no class by prompts that say "no".

Wang et al., "CLIPN for Zero-Shot OOD Detection: Teaching CLIP to Say No" (2023), section 3.4. A
class has a feature that affirms it and one that denies it, and of an image

    yes_c = sigmoid(scale * (cosine with the affirming - cosine with the denying one)),

the probability that the class is there. CTW (competing to win) is yes of the class with the highest
cosine; ATD (agreeing to differ) is the sum over classes of softmax(scale * cosine)_c * yes_c, one
minus the probability of a class beside all. Images that score lower are of no class.

CLIPN denies by a second text tower that was trained to say "no". Here the model's own tower reads
prompts with "no" in them, which contrastive models hardly understand without such training.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ....data.image_sets import ImageSet
from ..encode import Encoder
from .out_of_distribution import OutsideImages


class NegatedPrompts(OutsideImages):
    """AUROC and FPR95 of CLIPN's scores, with prompts that say "no" in the place of its tower.

    Measures: `ctw_auroc`, `ctw_fpr95`, `atd_auroc`, `atd_fpr95`.

    Args:
        outside: see `OutsideImages`.
        negated: prompts that deny the class, as `templates` are given.
        scale: what cosines are multiplied with; None: the model's own. 100 in the published code.
        others: further arguments of `OutsideImages`.
    """

    def __init__(
        self,
        outside: ImageSet,
        negated: Sequence[str | Callable[[str], str]] | dict[str, list[str]] | str = (
            "a photo without a {c}.",
            "a photo of no {c}.",
        ),
        scale: float | None = None,
        **others,
    ):
        super().__init__(outside, **others)
        if scale is not None and scale <= 0:
            raise ValueError(f"scale is {scale}; it has to be above 0")
        self.negated = negated
        self.scale = scale

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        self._negated = self.class_prompts(self.negated)
        return chosen

    def classifiers(self, encoder: Encoder) -> list[Tensor]:
        denying = encoder.mean_texts(encoder.prompt_means(self._negated))
        return [self.classifier(encoder), denying]

    def scores(self, cosines: list[Tensor], encoder: Encoder) -> dict[str, Tensor]:
        scale = encoder.logit_scale if self.scale is None else self.scale
        affirmed, denied = (scale * each for each in cosines)
        yes = torch.sigmoid(affirmed - denied)
        highest = affirmed.argmax(1, keepdim=True)
        return {
            "ctw_": yes.gather(1, highest)[:, 0],
            "atd_": (affirmed.softmax(1) * yes).sum(1),
        }
