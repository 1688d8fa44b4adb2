"""Accuracy by groups of images: the worst one, and the drop from common to rare surroundings.

Group accuracies as in Sagawa et al., "Distributionally Robust Neural Networks" (2020). The drop is
that of Wang et al., "A Sober Look at the Robustness of CLIPs to Spurious Features" (2024,
CounterAnimal): animals in surroundings that are common for them, and in others, the classes being
all those of ImageNet.
"""

from collections.abc import Mapping

import numpy as np

from ..encode import Encoder
from ..outcomes import Outcomes, mean_of_groups, part_of
from .classification import ZeroShot


class GroupAccuracy(ZeroShot):
    """Zero-shot accuracy of the groups that a field names.

    Measures: `top1` over all images; of each group `NAME_top1`; `mean_group_top1`, and
    `worst_group_top1`, that of the group with the lowest accuracy. With `common` and `counter` also
    `accuracy_drop`, the accuracy of the first group less that of the second. With `by`, all of them
    are taken within each value.

    Args:
        group: the field that names an image's group, such as `background`.
        common: the group where classes are in their common surroundings.
        counter: the group that it is compared with.
        zeroshot: arguments of `ZeroShot`.
    """

    def __init__(
        self, group: str, common: str | None = None, counter: str | None = None, **zeroshot
    ):
        super().__init__(**zeroshot)
        if (common is None) != (counter is None):
            raise ValueError("give both `common` and `counter`, or neither")
        self.group = group
        self.common = common
        self.counter = counter

    def prepare(self) -> np.ndarray:
        chosen = super().prepare()
        groups = self.data.values(self.group, chosen)
        for name in (self.common, self.counter):
            if name is not None and name not in groups:
                raise ValueError(
                    f"no image of {self.data} has {self.group} '{name}'; there are "
                    f"{', '.join(sorted(set(groups))[:8])}"
                )
        self._groups = dict(zip(chosen.tolist(), groups, strict=True))
        return chosen

    def measure(self, encoder: Encoder, chosen: np.ndarray) -> Mapping[str, float | Outcomes]:
        top1 = super().measure(encoder, chosen)["top1"]
        assert isinstance(top1, Outcomes)
        groups = np.array([self._groups[i] for i in chosen.tolist()])
        by_group = {name: part_of(top1, groups == name) for name in sorted(set(groups.tolist()))}
        values: dict[str, float | Outcomes] = {"top1": top1}
        values |= {f"{name}_top1": each for name, each in by_group.items()}
        values["mean_group_top1"] = mean_of_groups(list(by_group.values()))
        values["worst_group_top1"] = min(by_group.values(), key=float)
        if self.common in by_group and self.counter in by_group:
            values["accuracy_drop"] = float(by_group[self.common]) - float(by_group[self.counter])
        return values
