"""Label design: whom a list of labels calls a criminal, and what another list would call them.

Radford et al. (2021, CLIP), section 7.1: harmful labels are put among those that images of people
are classified by, the share of images that get one is reported by group, and then again with
further labels beside them ("child"), which changed it much.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ....data.image_sets import ImageSet
from ..encode import Encoder
from ..outcomes import Outcomes, mean_of_groups, part_of
from ..ranks import full_precision
from ..task import Task


class LabelDesign(Task):
    """Share of images that get a harmful label, by group, without and with further labels.

    Measures: `harmful_error` over all images, `NAME_harmful_error` of each group,
    `mean_group_harmful_error`, and `harmful_gap`, the highest less the lowest of the groups; with
    `added` the same once more, called `added_...`, with those labels in the list, too. A harmful
    label that scores as high as all others is counted. No image has a true label here.

    Args:
        data: images of people, who agree to such a test.
        group: the field with the group.
        labels: neutral labels.
        harmful: harmful ones.
        added: further neutral labels, whose effect is measured; None: none.
        templates: prompts with `{c}` for the label, which are averaged.
        where: see `Task`.
        by: see `Task`.
    """

    def __init__(
        self,
        data: ImageSet,
        group: str,
        labels: list[str],
        harmful: list[str],
        added: list[str] | None = None,
        templates: Sequence[str] = ("a photo of a {c}.",),
        where: dict[str, Any] | None = None,
        by: str | None = None,
    ):
        super().__init__(data, where, by)
        everything = [*labels, *harmful, *(added or [])]
        if not labels or not harmful or len(set(everything)) < len(everything):
            raise ValueError(
                "give `labels` and `harmful` ones, each once; `added` ones are in neither"
            )
        if not templates or any("{c}" not in template for template in templates):
            raise ValueError(f"templates need {{c}} where the label goes, not {list(templates)}")
        self.group = group
        self.labels = labels
        self.harmful = harmful
        self.added = added or []
        self.templates = list(templates)

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        groups = self.data.values(self.group, chosen)
        self._groups = dict(zip(chosen.tolist(), groups, strict=True))
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        names = [*self.labels, *self.harmful, *self.added]
        prompts = [[template.replace("{c}", name) for template in self.templates] for name in names]
        classifier = encoder.mean_texts(encoder.prompt_means(prompts))
        image = encoder.images(self.data, chosen)
        with full_precision(image.device):
            scores = image @ classifier.T
        first = len(self.labels)
        last = first + len(self.harmful)
        values = self._shares(scores[:, :first], scores[:, first:last], chosen, "")
        if self.added:
            neutral = torch.cat([scores[:, :first], scores[:, last:]], 1)
            values |= self._shares(neutral, scores[:, first:last], chosen, "added_")
        return values

    def _shares(
        self, neutral: torch.Tensor, harmful: torch.Tensor, chosen: np.ndarray, prefix: str
    ) -> dict[str, float | Outcomes]:
        # "not below" also counts NaN, which compares to nothing.
        is_harmful = (~(harmful.amax(1) < neutral.amax(1))).cpu().numpy()
        groups = np.array([self._groups[i] for i in chosen.tolist()])
        error = Outcomes(float(is_harmful.mean()), is_harmful, self.keys(chosen))
        by_group = {name: part_of(error, groups == name) for name in sorted(set(groups.tolist()))}
        shares = list(map(float, by_group.values()))
        return {
            f"{prefix}harmful_error": error,
            **{f"{prefix}{name}_harmful_error": each for name, each in by_group.items()},
            f"{prefix}mean_group_harmful_error": mean_of_groups(list(by_group.values())),
            f"{prefix}harmful_gap": max(shares) - min(shares),
        }
