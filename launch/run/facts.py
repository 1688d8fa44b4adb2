"""What a run's numbers came from: machine, size of the model and of the data, what was chosen.

In: the parts of a run that is about to start. Out: facts as plain JSON, for `starts.jsonl`,
`summary.json` and reports.
"""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from ...data.pairs import Pairs
from ...models.two_tower import TwoTower
from ..config.identity import names
from .provenance import machine


def facts(model: TwoTower, data: Pairs, trainer: Trainer, chosen: dict[str, Any]) -> dict[str, Any]:
    """Returns what a start adds to the configuration."""
    return {
        "machine": machine(),
        "device": trainer.strategy.root_device.type,
        "world_size": trainer.world_size,
        "precision": trainer.precision,
        "parameters": parameters(model),
        "epoch_size": data.epoch_size,
        "chosen": list(names(chosen)),
    }


def parameters(model: TwoTower) -> dict[str, int]:
    """Counts each parameter once: of the towers with their projections, of all, of what learns."""
    sides = {
        "image": [model.image, model.image_projection],
        "text": [model.text, model.text_projection],
    }
    counts = {
        side: _count(p for module in modules for p in module.parameters())
        for side, modules in sides.items()
    }
    whole = list(model.parameters())
    return counts | {
        "total": _count(whole),
        "trainable": _count(p for p in whole if p.requires_grad),
    }


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum({id(p): p.numel() for p in parameters}.values())
