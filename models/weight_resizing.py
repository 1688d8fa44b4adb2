"""Positions and vocabularies of one size for a tower of another, otherwise equal one.

In: weights under our names, and the model that they are for. Out: the same weights, those resized
that only differ in the number of positions or of token ids.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .image import ImageTower, TimmTower, resampled
from .text.siglip import SiglipTextTower
from .two_tower import TwoTower

GRIDS = ("trunk.pos_embed", "trunk.head.pos_embed")
POSITIONS = "embeddings.position_embedding.weight"
VOCABULARIES = (
    "embeddings.token_embedding.weight",
    "embeddings.word_embeddings.weight",
    "embeddings.tok_embeddings.weight",  # ModernBERT
    "embed_tokens.weight",  # NLLB
)


def resized(weights: Mapping[str, Tensor], model: TwoTower) -> dict[str, Tensor]:
    """Returns the tensors of `weights` that fit the model only now.

    Positions of patches are resampled on their grid (bicubic, antialiased), those of class and
    register tokens stay apart. Positions of tokens are cut, or stretched linearly as open_clip does
    it, or behind the first `kept_positions` of the tower; where the last position is pooled they
    are stretched both ways. A vocabulary gives its first rows; rows that it lacks stay the model's
    own.
    """
    own, fitted = model.state_dict(), {}
    for name, value in weights.items():
        if name not in own or own[name].shape == value.shape or own[name].ndim != value.ndim:
            continue
        tower, tensor = name.partition(".")[0], None
        if own[name].shape[-1] != value.shape[-1]:
            continue
        if tower == "image" and name.endswith(GRIDS):
            tensor = _grid(value, own[name], model.image, name)  # type: ignore[arg-type]
        elif tower == "text" and name.endswith(POSITIONS):
            pooled_last = isinstance(model.text, SiglipTextTower) and model.text.pooling == "last"
            kept = getattr(model.text, "kept_positions", 0)
            if kept and len(own[name]) > len(value) > kept + 1:
                tensor = _stretched_after(value, len(own[name]), kept)
            else:
                tensor = _positions(value, len(own[name]), pooled_last)
        elif tower == "text" and name.endswith(VOCABULARIES):
            rows = min(len(value), len(own[name]))
            tensor = own[name].clone()
            tensor[:rows] = value[:rows]
        if tensor is not None:
            fitted[name] = tensor
    return fitted


def vocabularies(weights: Mapping[str, Tensor], model: TwoTower) -> tuple[int, int] | None:
    """Numbers of token ids, in the weights and in the model; None: one has no such table."""
    for name, own in model.state_dict().items():
        if name.startswith("text.") and name.endswith(VOCABULARIES) and name in weights:
            return len(weights[name]), len(own)
    return None


def _grid(value: Tensor, own: Tensor, tower: ImageTower, name: str) -> Tensor | None:
    """Resamples [1, positions, width] or [positions, width]; None if the grid is no square."""
    assert isinstance(tower, TimmTower)
    pooled, trunk = "head." in name, tower.trunk
    prefix = int(not pooled and getattr(trunk, "num_prefix_tokens", 0)) or int(pooled)
    if getattr(trunk, "no_embed_class", False):
        prefix = 0
    flat, target = value.flatten(0, -2), own.flatten(0, -2)
    old, new = (math.isqrt(len(t) - prefix) for t in (flat, target))
    if old**2 != len(flat) - prefix or new**2 != len(target) - prefix:
        return None
    flat = flat.float()
    patches = resampled(flat[prefix:], (old, old), (new, new))
    return torch.cat([flat[:prefix], patches]).view(own.shape)


def _stretched_after(value: Tensor, length: int, kept: int) -> Tensor:
    """Stretches positions [n, width] behind the first `kept`, which stay.

    Zhang et al., "Long-CLIP: Unlocking the Long-Text Capability of CLIP" (2024), section 3.1, and
    its code: position `kept + k` lies at `kept + k / factor` of the old ones, linearly between two
    of them, and beyond the last one on the line through the last two.
    """
    factor = (length - kept) / (len(value) - kept)
    at = kept + torch.arange(length - kept, dtype=torch.float64) / factor
    before = at.floor().long().clamp(max=len(value) - 2)
    share = (at - before)[:, None]
    one, other = value[before].double(), value[before + 1].double()
    return torch.cat([value[:kept], (one + share * (other - one)).to(value.dtype)])


def _positions(value: Tensor, length: int, stretch: bool) -> Tensor:
    if length < len(value) and not stretch:
        return value[:length]
    columns = value.float().T[None]
    return F.interpolate(columns, size=length, mode="linear")[0].T
