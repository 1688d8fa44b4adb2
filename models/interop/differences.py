"""Settings without weights that decide what weights compute: activations, heads, pixel statistics.

In: a foreign model, and ours that takes its weights. Out: phrases, one a difference.
"""

from collections.abc import Iterable

import torch
from torch import nn

from ..image import TimmTower
from ..two_tower import TwoTower
from .base import ForeignModel, Pixels, made

ACTIVATIONS = (
    "torch.nn.modules.activation",
    "timm.layers.activations",
    "transformers.activations",
)


def differences(foreign: ForeignModel, model: TwoTower, towers: Iterable[str]) -> list[str]:
    """Compares the towers that get weights."""
    found = []
    for name in towers:
        with torch.device("meta"):
            theirs = made({name: foreign.config[name]})[name]
        ours: nn.Module = getattr(model, name)
        for what, own, other in (
            ("activation", _activations(ours), _activations(theirs)),
            ("number of heads", _heads(ours), _heads(theirs)),
        ):
            if own != other:
                found.append(f"{name} {what} {_words(own)}, there {_words(other)}")
    return found + (statistics_apart(foreign.pixels, model) if "image" in towers else [])


def statistics_apart(pixels: Pixels | None, model: TwoTower) -> list[str]:
    """Compares mean and standard deviation of pixels, if both are known."""
    if pixels is None or not isinstance(model.image, TimmTower):
        return []
    found, stem = [], model.image.stem
    for what, own, other in (
        ("mean", stem.mean, pixels.mean),
        ("standard deviation", stem.std, pixels.std),
    ):
        values = [round(x / 255, 4) for x in own.flatten().tolist()]
        if any(abs(x - y) > 1e-3 for x, y in zip(values, other, strict=True)):
            found.append(f"{what} of pixels {values}, there {[round(x, 4) for x in other]}")
    return found


def _activations(tower: nn.Module) -> set[str]:
    modules = [m for m in tower.modules() if type(m).__module__ in ACTIVATIONS]
    named = {type(m).__name__ + str(getattr(m, "approximate", "")) for m in modules}
    return {name for name in named if "Attention" not in name}


def _heads(tower: nn.Module) -> set[str]:
    return {
        str(heads)
        for m in tower.modules()
        if isinstance(heads := getattr(m, "num_heads", 0), int) and heads
    }


def _words(values: set[str]) -> str:
    return " and ".join(sorted(values)) or "none"
