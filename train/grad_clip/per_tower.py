"""A clipper for each tower."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..optim.param_groups import tower_of
from ..strategies.sharded_tensors import Tensors
from .base import Clipped, Clipper, Threshold, factor


class PerTower(Clipper):
    """Clips the norm of each tower by itself: a spike of one does not shorten the other's step.

    Args:
        towers: clippers of norms by `image` (projection included), `text`, and `rest` (logit scale
            and bias, heads of the objective). What is not named is not clipped.
    """

    def __init__(self, towers: dict[str, Threshold]):
        if not towers or not towers.keys() <= {"image", "text", "rest"}:
            raise ValueError(
                f"grad_clip.towers names {sorted(towers)}: give clippers for image, text or rest"
            )
        self.towers = towers

    def clip(self, tensors: Tensors, named: Mapping[str, nn.Parameter]) -> Clipped:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in named.items():
            groups.setdefault(tower_of(name), []).append(parameter)
        norms = tensors.norms(list(groups.values()))
        report = {}
        for (tower, parameters), norm in zip(groups.items(), norms, strict=True):
            report[f"grad_clip/{tower}/norm"] = norm
            if clipper := self.towers.get(tower):
                limit = clipper.limit(norm)
                tensors.scale(parameters, factor(norm, limit))
                report[f"grad_clip/{tower}/limit"] = limit
                report[f"grad_clip/{tower}/clipped"] = (norm > limit).float()
        return Clipped(torch.linalg.vector_norm(norms), report)

    def reset(self) -> None:
        for clipper in self.towers.values():
            clipper.reset()

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the states under `TOWER.NAME`."""
        return {
            f"{tower}.{key}": value
            for tower, clipper in self.towers.items()
            for key, value in clipper.state_dict().items()
        }
