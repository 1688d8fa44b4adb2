"""How far apart a step's embeddings lie: what a collapse takes away, measured at log steps.

In: features of all ranks, as the objective reads them. Out: `mean_cosine/image` and `/text`, the
mean cosine of all pairs of different samples of the global batch; under a similarity of raw
features also `spread/image` and `/text`, their variance as a part of their mean squared length (of
unit vectors that is 1 less the mean cosine). One all-reduce of two vectors.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...losses.distributed.collectives import world
from ...losses.objective import Objective
from ...models.two_tower import view_of
from ..distributed import mean_over_ranks


class Spread:
    """Takes the moments of a step's embeddings as they enter the objective; nothing waits.

    Args:
        objective: whose forward pass is listened to.

    Attributes:
        listening: whether the step is one that is logged.
    """

    def __init__(self, objective: Objective):
        self.listening = False
        self._form = objective.metric().form
        self._moments: dict[str, Tensor] = {}
        objective.register_forward_pre_hook(self._measure)

    def _measure(self, _: Any, inputs: tuple[Mapping[str, Tensor], Any]) -> None:
        if self.listening:
            self.listening = False  # an optimizer may call the objective again
            self._moments = moments_of(inputs[0], self._form)

    def take(self) -> dict[str, float]:
        """Returns the step's values of the global batch by name (collective)."""
        moments, self._moments = self._moments, {}
        if not moments:
            return {}
        means = mean_over_ranks(torch.cat(list(moments.values()))).cpu()
        values = {}
        parts = means.split([len(each) for each in moments.values()])
        for name, part in zip(moments, parts, strict=True):
            spread = spread_of(part * world()[1])
            if math.isfinite(spread):
                values[name] = spread if name.startswith("spread") else 1.0 - spread
        return values


@torch.no_grad()
def moments_of(features: Mapping[str, Tensor], form: str) -> dict[str, Tensor]:
    """Returns `moments_of_rows` of one view of each modality by the metric's name.

    Args:
        features: of a step; the main view counts, else the first one by name. Those of further
            streams do not.
        form: suffix of the features that the objective compares.
    """
    moments = {}
    for modality in ("image", "text"):
        views = sorted(
            name
            for name in features
            if name.split(".")[0] == modality and view_of(name) == name and "/" not in name
        )
        if views:
            moments[f"mean_cosine/{modality}"] = moments_of_rows(features[views[0]])
            if form and (raw := features.get(views[0] + form)) is not None:
                moments[f"spread/{modality}"] = moments_of_rows(raw)
    return moments


def moments_of_rows(rows: Tensor) -> Tensor:
    """Returns the number of rows, the sum of their squared lengths, and their sum: float64 [2 + d].

    In double precision the variance of rows that are all but equal is not lost.
    """
    rows = rows.detach().double()
    count = rows.new_full((1,), len(rows))
    return torch.cat([count, rows.square().sum()[None], rows.sum(0)])


def spread_of(moments: Tensor) -> float:
    """Returns the unbiased variance of rows as a part of their mean squared length; NaN of one."""
    count, squares, total = moments[0], moments[1], moments[2:]
    variance = (squares - total.square().sum() / count) / (count - 1)
    return float((variance / (squares / count).clamp_min(1e-300)).clamp_min(0.0))
